// The annotator's page: one pair at a time; answers are kept in localStorage, exported and imported.
"use strict";
(() => {
  const element = (id) => document.getElementById(id);
  const data = JSON.parse(element("pairs").textContent);
  const CHOICES = {
    preference: [["a", "A", "1"], ["equal", "Equal", "2"], ["b", "B", "3"],
      ["cannot judge", "Cannot judge", "4"]],
    correctness: [["a", "A", "q"], ["equal", "Equal", "w"], ["b", "B", "e"]],
    helpfulness: [["a", "A", "a"], ["equal", "Equal", "s"], ["b", "B", "d"]],
  };
  const QUESTIONS = Object.keys(CHOICES);
  const place = (annotator) => `${data.form}/${data.page}/${annotator}`;
  let annotator = null, pairs = [], answers = {}, at = 0, stored = true;

  function problem(text) {
    element("problem").textContent = text;
    element("problem").hidden = !text;
  }

  // What a browser or a file holds, as answers to this annotator's pairs only.
  function known(found) {
    const ids = new Set(pairs.map(([id]) => id));
    return Object.fromEntries(Object.entries(found).filter(
      ([id, answer]) => ids.has(id) && answer && typeof answer === "object"));
  }

  function load() {
    try {
      answers = known(JSON.parse(localStorage.getItem(place(annotator)) ?? "{}"));
    } catch (error) {
      answers = {};
      problem(`This browser does not keep answers (${error.name}): export them before you close it.`);
    }
  }

  function save() {
    try {
      localStorage.setItem(place(annotator), JSON.stringify(answers));
      stored = true;
    } catch (error) {
      stored = false;
      problem(`This browser does not keep answers (${error.name}): export them before you close it.`);
    }
    count();
  }

  const answer = () => answers[pairs[at][0]] ?? {};
  const isFinished = ([id]) => {
    const given = answers[id] ?? {};
    return given.preference === "cannot judge" || QUESTIONS.every((question) => given[question]);
  };

  function change(field, value) {
    const given = { ...answer(), [field]: value, at: new Date().toISOString() };
    if (given.preference === "cannot judge") {
      delete given.correctness;
      delete given.helpfulness;
    }
    answers[pairs[at][0]] = given;
    save();
    mark();
  }

  // Shows what is chosen for the present pair.
  function mark() {
    const given = answer();
    for (const input of element("form").querySelectorAll("input[type=radio]")) {
      input.checked = given[input.name] === input.value;
      input.disabled = input.name !== "preference" && given.preference === "cannot judge";
    }
    element("jump").options[at].textContent = label(at);
  }

  const label = (i) => `${i + 1}${isFinished(pairs[i]) ? " ✓" : ""}`;

  function count() {
    const finished = pairs.filter(isFinished).length;
    element("progress").textContent = `${annotator}: ${finished} of ${pairs.length} finished`;
    element("kept").textContent = finished === pairs.length
      ? `All ${pairs.length} pairs are finished: export the file and send it back.`
      : `${finished} of ${pairs.length} pairs are finished.`;
  }

  function show(i) {
    at = Math.min(Math.max(i, 0), pairs.length - 1);
    const [, question, first, second] = pairs[at];
    for (const [id, text] of [["question", question], ["first", first], ["second", second]])
      element(id).textContent = data.texts[text].trim() ? data.texts[text] : "(empty)";
    element("comment").value = answer().comment ?? "";
    element("jump").value = String(at);
    element("previous").disabled = at === 0;
    element("next").disabled = at === pairs.length - 1;
    mark();
    document.activeElement?.blur();
    scrollTo(0, 0);
    document.documentElement.dataset.pair = pairs[at][0];
  }

  function unfinished() {
    const order = pairs.map((_, i) => (at + 1 + i) % pairs.length);
    const next = order.find((i) => !isFinished(pairs[i]));
    if (next === undefined) element("files").scrollIntoView();
    else show(next);
  }

  function open(name) {
    annotator = name;
    pairs = data.annotators[name];
    problem("");
    load();
    count();
    element("jump").replaceChildren(...pairs.map((_, i) => {
      const option = document.createElement("option");
      option.value = String(i);
      option.textContent = label(i);
      return option;
    }));
    for (const id of ["work", "files"]) element(id).hidden = false;
    element("start").hidden = true;
    const first = pairs.findIndex((pair) => !isFinished(pair));
    show(first < 0 ? 0 : first);
  }

  function leave() {
    for (const id of ["work", "files"]) element(id).hidden = true;
    element("start").hidden = false;
    annotator = null;
    scrollTo(0, 0);
  }

  function exportFile() {
    const content = {
      form: data.form, page: data.page, annotator, exported: new Date().toISOString(), answers,
    };
    const link = document.createElement("a");
    const blob = new Blob([JSON.stringify(content, null, 1)], { type: "application/json" });
    link.href = URL.createObjectURL(blob);
    link.download = `${annotator}-${data.page}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    stored = true;
  }

  async function importFile(file) {
    let content;
    try {
      content = JSON.parse(await file.text());
    } catch (error) {
      if (!(error instanceof SyntaxError)) throw error;
      problem(`${file.name} is not a whole JSON file.`);
      return;
    }
    if (content?.form !== data.form || content.page !== data.page) {
      problem(`${file.name} was not exported from this page.`);
      return;
    }
    if (content.annotator !== annotator) {
      problem(`${file.name} has the answers of ${content.annotator}, not of ${annotator}.`);
      return;
    }
    const found = Object.entries(known(content.answers ?? {}));
    const later = found.filter(([id, given]) => !(answers[id]?.at >= given.at));
    Object.assign(answers, Object.fromEntries(later));
    problem(`${file.name}: ${later.length} of ${found.length} answers are new or later than those here.`);
    save();
    pairs.forEach((_, i) => { element("jump").options[i].textContent = label(i); });
    show(at);
    document.documentElement.dataset.imported = file.name;
  }

  const KEYS = {
    n: () => show(at + 1), p: () => show(at - 1), u: unfinished,
    c: () => element("comment").focus(),
  };

  for (const [question, choices] of Object.entries(CHOICES)) {
    for (const [value, text, key] of choices) {
      const input = document.createElement("input");
      Object.assign(input, { type: "radio", name: question, value });
      const hint = document.createElement("kbd");
      hint.textContent = key;
      const choice = document.createElement("label");
      choice.className = "choice";
      choice.append(input, text, hint);
      input.addEventListener("change", () => change(question, value));
      element(question).append(choice);
      KEYS[key] = () => { if (!input.disabled) change(question, value); };
    }
  }
  for (const name of Object.keys(data.annotators)) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.addEventListener("click", () => open(name));
    element("annotators").append(button);
  }
  element("comment").addEventListener("input", (event) => change("comment", event.target.value));
  element("jump").addEventListener("change", (event) => show(Number(event.target.value)));
  element("previous").addEventListener("click", KEYS.p);
  element("next").addEventListener("click", KEYS.n);
  element("unfinished").addEventListener("click", unfinished);
  element("leave").addEventListener("click", leave);
  element("export").addEventListener("click", exportFile);
  element("import").addEventListener("change", (event) => {
    if (event.target.files.length) importFile(event.target.files[0]);
    event.target.value = "";
  });
  element("form").addEventListener("submit", (event) => event.preventDefault());
  addEventListener("keydown", (event) => {
    if (annotator === null || event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.matches("textarea,select");
    if (typing) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const act = KEYS[event.key.toLowerCase()];
    if (act) {
      event.preventDefault();
      act();
    }
  });
  // Another tab with this page: what it stores is shown here too.
  addEventListener("storage", (event) => {
    if (annotator === null || event.key !== place(annotator)) return;
    load();
    count();
    show(at);
  });
  addEventListener("beforeunload", (event) => { if (!stored) event.preventDefault(); });
  document.documentElement.dataset.ready = "true";
})();

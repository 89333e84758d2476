// The transcripts of the report: filters, a list, and two answers side by side. The page contains
// texts as gzip in base64, in blocks of some items, which are unpacked when viewed.
"use strict";
(() => {
  const element = (id) => document.getElementById(id);
  const SHOWN = 40; // rows of the list before "Show more"
  const MISSING = 0, MODEL = 1, REFERENCE = 2, TIE = 3, INVALID = 4;
  const OUTCOMES = {
    won: "Model won both times", lost: "Reference won both times", tie: "Tie both times",
    first: "The first answer won both times", second: "The second answer won both times",
    mixed: "A tie in one order", invalid: "A reply was invalid", other: "Judges differ",
  };
  const BADGES = {
    won: "won", lost: "lost", tie: "tie", first: "first ×2", second: "second ×2", mixed: "half a tie",
    invalid: "invalid", one: "one order", none: "not judged",
  };
  const WORDS = ["not judged", "model", "reference", "tie", "invalid"];

  const index = JSON.parse(element("index").textContent);
  const cells = new Map(index.cells.map((names, i) => [names.join("/"), i]));
  const state = { benchmark: "", system: "", reference: "", judge: "", outcome: "", query: "" };
  let items, verdicts, starts, found = [], at = -1, shown = SHOWN, turn = 0;
  const blocks = new Map();

  async function unpack(id) {
    const letters = atob(element(id).textContent);
    const bytes = Uint8Array.from(letters, (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }
  const unpackJson = async (id) => JSON.parse(new TextDecoder().decode(await unpack(id)));

  function block(number) {
    if (!blocks.has(number)) blocks.set(number, unpackJson(`block-${number}`));
    return blocks.get(number);
  }

  // Both verdicts on an item, model first and reference first.
  function verdict(judge, benchmark, reference, system, place) {
    const cell = cells.get([judge, benchmark, reference, system].join("/"));
    if (cell === undefined) return [MISSING, MISSING];
    const both = verdicts[starts[cell] + place];
    return [Math.floor(both / 5), both % 5];
  }

  function outcome([one, other]) {
    if (!one && !other) return "none";
    if (one === INVALID || other === INVALID) return "invalid";
    if (!one || !other) return "one";
    if (one === other) return one === TIE ? "tie" : one === MODEL ? "won" : "lost";
    if (one === TIE || other === TIE) return "mixed";
    return one === MODEL ? "first" : "second";
  }

  function make(tag, text, name) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (name) made.className = name;
    return made;
  }

  function options(id, values, labels) {
    const select = element(id);
    select.replaceChildren(...values.map((value, i) => {
      const option = make("option", labels[i]);
      option.value = value;
      return option;
    }));
    state[id] = select.value;
  }

  const numbers = (names) => names.map((_, i) => String(i));

  function readControls() {
    for (const id of Object.keys(state)) state[id] = element(id).value;
  }

  // The side that the valid verdicts favour together, as in the table of agreement; null without any.
  function side(both) {
    const judged = both.filter((code) => code !== MISSING);
    if (!judged.length || judged.includes(INVALID)) return null;
    const votes = (code) => judged.filter((said) => said === code).length;
    return Math.sign(votes(MODEL) - votes(REFERENCE));
  }

  function judgesDiffer(item) {
    const sides = index.judges.map((_, judge) =>
      side(verdict(judge, item.benchmark, state.reference, state.system, item.place)));
    return new Set(sides.filter((favoured) => favoured !== null)).size > 1;
  }

  const pair = (item) =>
    outcome(verdict(state.judge, item.benchmark, state.reference, state.system, item.place));

  function matches(item) {
    if (state.benchmark !== "" && item.benchmark !== Number(state.benchmark)) return false;
    const said = pair(item);
    if (said === "none") return false;
    if (state.outcome === "other") return judgesDiffer(item);
    return state.outcome === "" || state.outcome === said;
  }

  const holds = (text, query) => text.toLowerCase().includes(query);

  async function search() {
    const own = ++turn;
    readControls();
    const query = state.query.trim().toLowerCase(), deep = element("deep").checked;
    let candidates = items.filter(matches);
    if (query) {
      const kept = [];
      for (const item of candidates) {
        if (own !== turn) return; // a newer search is running
        let fits = holds(`${item.id} ${item.topic} ${item.instruction} ${item.input}`, query);
        if (!fits && deep) {
          const texts = (await block(item.block)).items[item.row].outputs;
          fits = [state.system, state.reference].some(
            (name, side) => holds(texts[side ? index.answers.references[name]
              : index.answers.systems[name]]?.[0] ?? "", query));
        }
        if (fits) kept.push(item);
      }
      candidates = kept;
    }
    if (own !== turn) return;
    found = candidates;
    shown = SHOWN;
    list();
    if (at >= 0) at = found.indexOf(current);
    element("count").textContent =
      `${found.length.toLocaleString("en")} of ${items.length.toLocaleString("en")} items`;
    if (current) await open(current, false);
    document.documentElement.dataset.searches = String(own);
  }

  function list() {
    const rows = found.slice(0, shown).map((item) => {
      const button = make("button");
      button.type = "button";
      button.setAttribute("aria-current", String(item === current));
      const head = make("span", undefined, "muted");
      head.append(`${index.benchmarks[item.benchmark]} ${item.id}` +
        (item.difficulty ? ` · difficulty ${item.difficulty}` : "") +
        (item.topic ? ` · ${item.topic}` : "") + " ");
      head.append(badge(pair(item)));
      const question = item.input && item.common ? item.input : `${item.instruction} ${item.input}`;
      button.append(head, make("span", question.slice(0, 240)));
      button.addEventListener("click", () => open(item, true));
      const row = make("li");
      row.append(button);
      return row;
    });
    element("list").replaceChildren(...rows);
    element("more").hidden = found.length <= shown;
  }

  function badge(said) {
    return make("span", BADGES[said], `badge ${said}`);
  }

  let current = null;

  async function open(item, move) {
    current = item;
    at = found.indexOf(item);
    const unpacked = await block(item.block);
    if (current !== item) return; // another item was chosen meanwhile
    const texts = unpacked.items[item.row];
    const system = index.systems[state.system], reference = index.references[state.reference];
    const title = `${index.benchmarks[item.benchmark]} ${item.id}` +
      (item.difficulty ? `, difficulty ${item.difficulty}` : "") +
      (item.topic ? `, ${item.topic}` : "");
    const question = make("div", undefined, "question");
    question.append(make("h4", "Question"), make("p", item.instruction, "text"));
    if (item.input) question.append(make("p", item.input, "text"));
    const sides = make("div", undefined, "sides");
    sides.append(answer("Model", system, texts.outputs[index.answers.systems[state.system]]),
      answer("Reference", reference, texts.outputs[index.answers.references[state.reference]]));
    element("shown").replaceChildren(
      make("h3", title), outcomes(item), question, sides, make("h4", "Verdicts"),
      judged(item, texts.replies, unpacked.replies));
    element("transcripts").classList.add("opened");
    element("previous").disabled = at <= 0;
    element("next").disabled = at < 0 || at + 1 >= found.length;
    for (const button of element("list").querySelectorAll("button"))
      button.setAttribute("aria-current", "false");
    element("list").children[at]?.firstChild.setAttribute("aria-current", "true");
    if (move) {
      const names = [index.benchmarks[item.benchmark], item.id,
        index.generators[index.answers.systems[state.system]],
        index.generators[index.answers.references[state.reference]]];
      history.replaceState(null, "", "#" + names.map(encodeURIComponent).join("/"));
      element("shown").scrollTop = 0;
      if (matchMedia("(max-width:800px)").matches) element("view").scrollIntoView();
    }
    document.documentElement.dataset.opened = item.id;
  }

  function answer(role, name, output) {
    const side = make("div", undefined, "side");
    side.append(make("h4", `${role}: ${name}`));
    if (!output) {
      side.append(make("p", "The text of this answer is not included.", "muted"));
      return side;
    }
    const [text, reason] = output;
    const length = `${[...text].length.toLocaleString("en")} characters`;
    side.append(make("p", reason && reason !== "stop" ? `${length}, ended by: ${reason}` : length,
      "muted"));
    side.append(text.trim() ? make("p", text, "text") : make("p", "(empty)", "muted"));
    return side;
  }

  // The outcome of each judge's verdicts, in a line.
  function outcomes(item) {
    const line = make("p", undefined, "muted");
    index.judges.forEach((judge, number) => {
      const result = outcome(
        verdict(number, item.benchmark, state.reference, state.system, item.place));
      if (result !== "none") line.append(`${judge} `, badge(result), "  ");
    });
    return line;
  }

  // Both verdicts of every judge on the pair shown.
  function judged(item, places, replies) {
    const all = make("div", undefined, "verdicts");
    index.judges.forEach((judge, number) => {
      const both = verdict(number, item.benchmark, state.reference, state.system, item.place);
      if (outcome(both) === "none") return;
      const box = make("div", undefined, "judged");
      const head = make("h4", `${judge} `);
      head.append(badge(outcome(both)));
      box.append(head);
      const cell = cells.get([number, item.benchmark, state.reference, state.system].join("/"));
      both.forEach((code, order) => {
        if (!code) return;
        const line = make("p");
        const shown = index.unordered.includes(cell) ? "Order unknown: "
          : order ? "Reference first: " : "Model first: ";
        line.append(make("strong", shown), WORDS[code]);
        box.append(line);
        const raw = replies[places[cell]?.[order]];
        if (raw) box.append(make("p", raw, "text reply"));
      });
      all.append(box);
    });
    return all;
  }

  const step = (by) => {
    if (found[at + by]) {
      if (at + by >= shown) { shown += SHOWN; list(); }
      open(found[at + by], true);
    }
  };

  // Chooses a pair and a judge that have verdicts, if those shown have none; keeps what was changed.
  function fit(changed) {
    const places = { judge: 0, reference: 2, system: 3 };
    const near = (ids) => index.cells.find(
      (cell) => ids.every((id) => cell[places[id]] === Number(element(id).value)));
    if (!(changed in places)) return;
    const cell = near(Object.keys(places)) ?? near([changed, "system"]) ?? near([changed]);
    for (const [id, place] of Object.entries(places)) element(id).value = String(cell[place]);
  }

  // #benchmark/id/system/reference opens one transcript, for links from papers.
  function fromAddress() {
    let names;
    try {
      names = location.hash.slice(1).split("/").map(decodeURIComponent);
    } catch (error) {
      if (error instanceof URIError) return null; // "%" without two hexadecimal digits
      throw error;
    }
    if (names.length !== 4) return null;
    const benchmark = index.benchmarks.indexOf(names[0]);
    const number = (kind, name) =>
      index.answers[kind].findIndex((answers) => index.generators[answers] === name);
    const system = number("systems", names[2]), reference = number("references", names[3]);
    const item = items.find((item) => item.benchmark === benchmark && item.id === names[1]);
    if (!item || system < 0 || reference < 0) return null;
    element("system").value = String(system);
    element("reference").value = String(reference);
    return item;
  }

  async function follow() {
    const wanted = fromAddress();
    if (!wanted) {
      if (location.hash.includes("/"))
        element("shown").replaceChildren(
          make("p", "This page does not contain the item or the pair in the address.", "muted"));
      return;
    }
    await search();
    await open(wanted, true);
    element("transcripts").scrollIntoView();
  }

  async function start() {
    if (!("DecompressionStream" in window)) {
      element("count").textContent = "This browser is too old to unpack the transcripts.";
      return;
    }
    const packed = await unpackJson("items");
    verdicts = await unpack("verdicts");
    starts = [];
    let end = 0;
    for (const [, benchmark] of index.cells) {
      starts.push(end);
      end += index.sizes[benchmark];
    }
    items = packed.map(([benchmark, place, id, instruction, input, topic, difficulty, block, row]) =>
      ({ benchmark, place, id, instruction, input, topic, difficulty, block, row }));
    const asked = new Map();
    for (const item of items) asked.set(item.instruction, (asked.get(item.instruction) ?? 0) + 1);
    for (const item of items) item.common = asked.get(item.instruction) > 1;
    options("benchmark", ["", ...numbers(index.benchmarks)], ["all", ...index.benchmarks]);
    options("system", numbers(index.systems), index.systems);
    options("reference", numbers(index.references), index.references);
    options("judge", numbers(index.judges), index.judges);
    const outcomes = Object.keys(OUTCOMES).filter((key) => key !== "other" || index.judges.length > 1);
    options("outcome", ["", ...outcomes], ["any", ...outcomes.map((key) => OUTCOMES[key])]);
    for (const id of ["benchmark", "system", "reference", "judge", "outcome", "deep"])
      element(id).addEventListener("change", () => { fit(id); search(); });
    element("query").addEventListener("input", search);
    element("more").addEventListener("click", () => { shown += SHOWN; list(); });
    element("previous").addEventListener("click", () => step(-1));
    element("next").addEventListener("click", () => step(1));
    element("back").addEventListener("click", () => {
      element("transcripts").classList.remove("opened");
      element("transcripts").scrollIntoView();
    });
    fit("judge");
    await search();
    await follow();
    addEventListener("hashchange", follow); // a link within the page, or an edited address
    document.documentElement.dataset.ready = "true";
  }

  start();
})();

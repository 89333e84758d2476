"use strict";
const byId = (id) => document.getElementById(id);
const model = "$MODEL";
let messages = [];
let running = null;

function add(parent, tag, name, text) {
  const element = document.createElement(tag);
  element.className = name;
  element.textContent = text;
  parent.append(element);
  return element;
}

function post(path, body, signal) {
  const headers = {"Content-Type": "application/json"};
  if (byId("key")) headers.Authorization = "Bearer " + byId("key").value.trim();
  return fetch(path, {method: "POST", headers, signal, body: JSON.stringify(body)});
}

async function failure(response) {
  const found = await response.json().catch(() => null);
  return new Error(found?.error?.message ?? `the server answered ${response.status}`);
}

function conversation() {
  const system = byId("system").value;
  return system.trim() ? [{role: "system", content: system}, ...messages] : [...messages];
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let unread = "";
  for (;;) {
    const {done, value} = await reader.read();
    if (done) throw new Error("the server ended the answer before it was complete");
    unread += value;
    const parts = unread.split("\n\n");
    unread = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

function showPrompt(asked, box) {
  const details = add(box, "details", "", "");
  add(details, "summary", "", "What the model reads");
  details.addEventListener("toggle", async () => {
    if (!details.open || details.querySelector("pre")) return;
    const text = add(details, "pre", "", "…");
    try {
      const response = await post("apply-template", {messages: asked});
      if (!response.ok) throw await failure(response);
      const found = await response.json();
      text.textContent = found.prompt;
      details.firstChild.textContent = `What the model reads: ${found.tokens} tokens`;
    } catch (error) {
      text.textContent = error.message;
    }
  });
}

function run(controller) {  // null: nothing runs
  running = controller;
  byId("send").disabled = controller !== null;
  byId("stop").disabled = controller === null;
}

// The text of the answer, which is shown in a box as it arrives; null: there is none.
async function answer(asked, box) {
  const body = {model, messages: asked, stream: true, temperature: Number(byId("temperature").value)};
  if (byId("limit").value) body.max_tokens = Number(byId("limit").value);
  const text = add(box, "div", "text", "");
  let reason = "";
  const toEnd = () => scrollTo(0, document.body.scrollHeight);
  const show = (change) => {  // and follow it, unless the reader has scrolled up
    const follows = innerHeight + scrollY > document.body.scrollHeight - 160;
    change();
    if (follows) toEnd();
  };
  toEnd();
  try {
    const response = await post("v1/chat/completions", body, running.signal);
    if (!response.ok) throw await failure(response);
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      const choice = event.choices[0];
      show(() => text.textContent += choice?.delta?.content ?? "");
      reason = choice?.finish_reason ?? reason;
    }
    if (reason === "length") show(() => add(box, "div", "muted", "Cut at the maximum of tokens."));
    else if (!text.textContent) show(() => add(box, "div", "muted", "The answer is empty."));
  } catch (error) {
    const stopped = error.name === "AbortError";
    add(box, "div", stopped ? "muted" : "error", stopped ? "Stopped." : error.message);
    toEnd();
    if (!text.textContent) return null;
  }
  return text.textContent;
}

async function send() {
  const question = byId("question").value;
  if (running || !question.trim()) return;
  run(new AbortController());
  messages.push({role: "user", content: question});
  const asked = conversation();
  const turn = add(byId("turns"), "div", "user", "");
  add(turn, "div", "text", question);
  showPrompt(asked, turn);
  byId("question").value = "";
  const mine = messages;
  const said = await answer(asked, add(byId("turns"), "div", "assistant", ""));
  if (said === null) {
    mine.pop();
    if (mine === messages) byId("question").value ||= question;  // to be sent again
  } else {
    mine.push({role: "assistant", content: said});
  }
  run(null);
  byId("question").focus();
}

byId("send").addEventListener("click", send);
byId("stop").addEventListener("click", () => running?.abort());
byId("again").addEventListener("click", () => {
  running?.abort();
  messages = [];
  byId("turns").replaceChildren();
  byId("question").focus();
});
byId("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});

"use strict";
// Asks all models at once, shows their answers as they come, and sends which was better.

const $ = (selector) => document.querySelector(selector);
const names = JSON.parse($("#answers").dataset.names);
let messages = [];    // the conversation so far, with the answers that were preferred
let asked = null;     // {task, of, texts, key} of the answers on the page
let asking = null;    // aborts what is being said

function say(text, is_problem = false) {
  $("#status").textContent = text;
  $("#status").classList.toggle("problem", is_problem);
}

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function show_talk() {
  $("#talk").replaceChildren(...messages.map(({ role, content }) => element("div", { className: "turn " + role },
    element("span", { className: "role", textContent: role }), element("p", { className: "said", textContent: content }))));
}

function show_answers(shown) {
  $("#answers").replaceChildren(...shown.map((name, place) => {
    const title = element("span", { className: "name", textContent: name || "Model " + (place + 1) });
    const article = element("article", { className: "completion" },
      element("header", {}, element("kbd", { textContent: place + 1 }), title), element("p", { className: "said" }));
    article.setAttribute("aria-label", "Answer " + (place + 1));
    return article;
  }));
  $("#choices").replaceChildren(...shown.map((_, place) => {
    const button = element("button", { type: "button" }, "Answer ", element("kbd", { textContent: place + 1 }));
    button.dataset.best = String(place);
    return button;
  }), " ");
}

function reveal(shown) {
  document.querySelectorAll("#answers .name").forEach((title, place) => { title.textContent = shown[place]; });
}

async function ask(text, is_blind) {
  if (asking) asking.abort();
  if (asked) keep_best(asked, 0);
  asking = new AbortController();
  messages.push({ role: "user", content: text });
  show_talk();
  show_answers(is_blind ? names.map(() => "") : names);
  $("#vote").hidden = true;
  say("They are answering.");
  const texts = names.map(() => "");
  try {
    const answer = await fetch("/playground/ask", {
      method: "POST", signal: asking.signal, headers: { "Content-Type": "application/json", "X-Requested-With": "fetch" },
      body: JSON.stringify({ messages, is_blind }),
    });
    if (!answer.ok) { fail(answer.status === 422 ? "This is too long." : await answer.text()); return; }
    let left = "";
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      const lines = (left + part.value).split("\n");
      left = lines.pop();
      for (const line of lines.map((line) => JSON.parse(line))) {
        if (line.place === undefined) finish(line, texts);
        else {
          texts[line.place] += line.text;
          document.querySelectorAll("#answers .said")[line.place].textContent = texts[line.place];
        }
      }
    }
    if (!asked) fail("The answers broke off. Ask again.");
  } catch (error) {
    if (error.name !== "AbortError") fail("No connection. Ask again.");
  }
}

function fail(why) {
  messages.pop();
  show_talk();
  say(why, true);
}

function finish(last, texts) {
  asked = { ...last, texts, key: crypto.randomUUID().replaceAll("-", "") };
  if (last.names) reveal(last.names);
  $("#vote").hidden = last.task === null;
  say(last.task === null ? "There is nothing to choose between: they said the same, or nothing." : "Which is better?");
}

function keep_best(from, place) {
  messages.push({ role: "assistant", content: from.texts[place].trim() || "..." });
  asked = null;
  show_talk();
}

async function vote(best) {
  if (!asked || asked.task === null || asked.is_sent) return;
  const place = best === "tie" || best === "bad" ? null : Number(best);
  if (place !== null && !(place < asked.of.length)) return;
  asked.is_sent = true;
  try {
    const answer = await fetch(`/playground/tasks/${asked.task}/vote`, {
      method: "POST", headers: { "Content-Type": "application/json", "X-Requested-With": "fetch" },
      body: JSON.stringify({ best: place === null ? null : asked.of[place], is_bad: best === "bad", key: asked.key }),
    });
    if (!answer.ok) { asked.is_sent = false; say(await answer.text(), true); return; }
    const { sources } = await answer.json();
    reveal(asked.of.map((completion) => sources[completion]));
    $("#vote").hidden = true;
    if (place !== null) document.querySelectorAll("#answers .completion")[place].classList.add("first");
    say("Kept. Ask on, from " + (place === null ? "the first answer." : "the better answer."));
    keep_best(asked, place === null ? 0 : place);
  } catch {
    asked.is_sent = false;
    say("No connection: the vote was not kept. Try again.", true);
  }
}

$("#ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = event.target.elements.text.value.trim();
  if (!text) return;
  event.target.elements.text.value = "";
  event.target.elements.text.blur();
  ask(text, event.target.elements.blind.checked);
});

$("#vote").addEventListener("click", (event) => {
  const button = event.target.closest("[data-best]");
  if (button) vote(button.dataset.best);
});

$("#anew").addEventListener("click", () => {
  if (asking) asking.abort();
  messages = [];
  asked = null;
  show_talk();
  show_answers([]);
  $("#vote").hidden = true;
  say("");
  $("#ask textarea").focus();
});

document.addEventListener("keydown", (event) => {
  if (event.target.matches("textarea")) {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("#ask").requestSubmit();
    else if (event.key === "Escape") event.target.blur();
    else return;
  } else if (event.ctrlKey || event.metaKey || event.altKey) return;
  else if (/^[1-9]$/.test(event.key)) vote(String(Number(event.key) - 1));
  else if (event.key === "t") vote("tie");
  else if (event.key === "b") vote("bad");
  else if (event.key === "a") $("#ask textarea").focus();
  else return;
  event.preventDefault();
});

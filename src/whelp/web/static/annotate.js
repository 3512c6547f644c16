"use strict";
// Keys, drags and drafts. The form works without any of it; the selects named "rank" hold what will be sent.

const $ = (selector) => document.querySelector(selector);
const ranks = () => [...document.querySelectorAll("#judge select[name=rank]")];
const status_line = () => $("#status");
let picked = [];       // places in the order in which they were ranked
let tie_next = false;  // the next pick shares the last one's rank
let saving = null;     // timer of the draft
let began = Date.now(), sent = 0;

function say(text, is_problem = false) {
  status_line().textContent = text;
  status_line().classList.toggle("problem", is_problem);
}

function is_pair() { return ranks().length === 2; }
function field(name) { return $(`#judge [name=${name}]`); }

function mark_first() {
  ranks().forEach((select) => select.closest(".completion").classList.toggle("first", select.value === "1"));
}

function show_ranks() {
  mark_first();
  save_soon();
}

function pick(place) {
  const all = ranks();
  if (place >= all.length) return;
  if (is_pair()) return prefer(place);
  if (picked.includes(place)) { unpick(place); return; }
  const last = picked.length ? Number(all[picked.at(-1)].value) : 0;
  all[place].value = String(tie_next && last ? last : last + 1);
  tie_next = false;
  picked.push(place);
  show_ranks();
}

function unpick(place) {
  const all = ranks();
  picked.splice(picked.indexOf(place));
  all.forEach((select, i) => { if (!picked.includes(i)) select.value = ""; });
  tie_next = false;
  show_ranks();
}

function prefer(place) {
  const all = ranks(), strength = field("strength");
  const again = all[place].value === "1" && all[1 - place].value === "2";
  all[place].value = "1";
  all[1 - place].value = "2";
  field("both_bad").checked = false;
  strength.value = again ? String((Number(strength.value || 0) % 4) + 1) : "";
  say(`Completion ${place + 1} is better${strength.value ? ", " + strength.selectedOptions[0].textContent : ""}.`);
  show_ranks();
}

function tie(both_bad) {
  if (!is_pair()) {
    if (both_bad) return;
    tie_next = true;
    say("The next one is as good as the last.");
    return;
  }
  ranks().forEach((select) => { select.value = "1"; });
  field("strength").value = "";
  field("both_bad").checked = both_bad;
  say(both_bad ? "Both are bad." : "A tie.");
  show_ranks();
}

function complete() {
  // The last one left takes the last place.
  const left = ranks().filter((select) => !select.value);
  if (left.length === 1 && ranks().length > 2) {
    left[0].value = String(1 + Math.max(...ranks().map((select) => Number(select.value || 0))));
  }
  return ranks().every((select) => select.value);
}

function content() {
  return {
    ranks: ranks().map((select) => Number(select.value) || null),
    strength: field("strength") ? Number(field("strength").value) || null : null,
    is_both_bad: field("both_bad") ? field("both_bad").checked : false,
    comment: field("comment").value,
  };
}

function save_soon() {
  clearTimeout(saving);
  saving = setTimeout(save, 400);
}

async function save() {
  const form = $("#judge");
  if (!form) return;
  try {
    const answer = await fetch(form.dataset.draftUrl, {
      method: "POST", headers: { "Content-Type": "application/json", "X-Requested-With": "fetch" },
      body: JSON.stringify(content()), keepalive: true,
    });
    if (!answer.ok) say(await answer.text(), true);
  } catch {
    say("No connection: what you do here is not saved. It will be tried again.", true);
    saving = setTimeout(save, 3000);
  }
}

function restore() {
  const form = $("#judge");
  picked = [];
  tie_next = false;
  if (!form) return;
  const draft = JSON.parse(form.dataset.draft || "{}");
  (draft.ranks || []).forEach((rank, place) => { if (rank) ranks()[place].value = String(rank); });
  picked = ranks().map((select, place) => [Number(select.value), place]).filter(([rank]) => rank)
    .sort((a, b) => a[0] - b[0]).map(([, place]) => place);
  if (field("strength")) field("strength").value = draft.strength ? String(draft.strength) : "";
  if (field("both_bad")) field("both_bad").checked = Boolean(draft.is_both_bad);
  field("comment").value = draft.comment || "";
  mark_first();
}

async function send(form, kind) {
  clearTimeout(saving);
  const body = new FormData(form);
  if (kind) body.set("kind", kind);
  for (let attempt = 0; ; attempt++) {
    try {
      const answer = await fetch(form.action, { method: "POST", body, headers: { "X-Requested-With": "fetch" } });
      const text = await answer.text();
      if (!answer.ok) { say(text, true); return; }
      $("#task").innerHTML = text;
      sent += kind === "vote" ? 1 : 0;
      say(kind === "vote" ? "Sent." : kind === "skip" ? "Skipped." : kind === "flag" ? "Flagged." : "Undone.");
      restore();
      pace();
      window.scrollTo(0, 0);
      return;
    } catch {
      // The same key: if the server had heard it, it counts once.
      say("No connection: trying again.", true);
      await new Promise((wake) => setTimeout(wake, Math.min(1000 * 2 ** attempt, 10000)));
    }
  }
}

function pace() {
  const minutes = (Date.now() - began) / 60000;
  if (sent > 1 && $("#pace")) $("#pace").textContent = `${Math.round(sent / minutes * 60)} an hour`;
}

function judge(kind) {
  const form = $("#judge");
  if (!form) return;
  if (kind === "vote" && !complete()) { say("Give every completion a place first, or skip.", true); return; }
  if (kind === "flag" && !field("comment").value.trim()) {
    say("Say in the comment what is wrong, then flag.", true);
    field("comment").focus();
    return;
  }
  send(form, kind);
}

document.addEventListener("submit", (event) => {
  if (event.target.id !== "judge" && event.target.id !== "undo") return;
  event.preventDefault();
  if (event.target.id === "undo") send(event.target);
  else judge(event.submitter ? event.submitter.value : "vote");
});

document.addEventListener("click", (event) => {
  const opener = event.target.closest("[data-opens]");
  if (opener) $("#" + opener.dataset.opens).showModal();
});

document.addEventListener("input", (event) => {
  if (event.target.closest("#judge")) save_soon();
});

document.addEventListener("change", (event) => {
  if (event.target.matches("#judge select[name=rank]")) {
    picked = [];
    show_ranks();
  }
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const inside = event.target.closest("textarea, input:not([type=checkbox]), select");
  if (inside) {
    if (event.key === "Escape") inside.blur();
    return;
  }
  const actions = {
    Enter: () => judge("vote"), t: () => tie(false), b: () => tie(true), s: () => judge("skip"), f: () => judge("flag"),
    u: () => $("#undo button").disabled || send($("#undo")), c: () => $("#judge") && field("comment").focus(),
    g: () => $("#guidelines").showModal(), "?": () => $("#keys").showModal(),
    Backspace: () => picked.length && unpick(picked.at(-1)),
  };
  if (/^[1-9]$/.test(event.key)) pick(Number(event.key) - 1);
  else if (actions[event.key] && !(event.key === "Enter" && event.target.closest("button, a"))) actions[event.key]();
  else return;
  event.preventDefault();
});

// Drag a completion over another: it takes the place before it.
let dragged = null;
document.addEventListener("dragstart", (event) => { dragged = event.target.closest(".completion"); });
document.addEventListener("dragover", (event) => {
  const over = event.target.closest(".completion");
  if (dragged && over && over !== dragged) event.preventDefault();
});
document.addEventListener("drop", (event) => {
  const over = event.target.closest(".completion");
  if (!dragged || !over || over === dragged) return;
  event.preventDefault();
  // What is sent stands in the order of the page's source, so only the looks are moved.
  const shown = [...document.querySelectorAll(".completion")].sort((a, b) => a.style.order - b.style.order);
  const to = shown.indexOf(over);
  shown.splice(shown.indexOf(dragged), 1);
  shown.splice(to, 0, dragged);
  picked = shown.map((article) => Number(article.dataset.place));
  shown.forEach((article, i) => {
    article.style.order = String(i);
    article.querySelector("select").value = String(i + 1);
  });
  show_ranks();
  dragged = null;
});

window.addEventListener("beforeunload", () => { if (saving) save(); });
restore();

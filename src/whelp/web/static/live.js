"use strict";
// Shows a part of the page anew while something runs behind it.

const EVERY = 5000;

async function refresh() {
  const live = document.querySelector("#live");
  if (live.querySelector("[data-live=yes]") && !live.contains(document.activeElement) && !document.hidden) {
    try {
      const answer = await fetch(live.dataset.url, { headers: { "X-Requested-With": "fetch" } });
      if (answer.ok) live.innerHTML = await answer.text();
    } catch { /* the next time */ }
  }
  setTimeout(refresh, EVERY);
}

setTimeout(refresh, EVERY);

"use strict";
// Finds answers by their words and by what became of them. Without it, everything is there to be read.
const bar = document.getElementById("find");
const [words, kind, found] = [bar.querySelector("input"), bar.querySelector("select"), bar.querySelector("output")];
const boxes = [...document.querySelectorAll("#samples details.box")].map((box) => ({
  box,
  articles: [...box.querySelectorAll("article")].map((article) => ({ article, text: article.textContent.toLowerCase() })),
}));

function show() {
  const query = words.value.trim().toLowerCase();
  let count = 0;
  let all = 0;
  for (const { box, articles } of boxes) {
    let here = 0;
    for (const { article, text } of articles) {
      const fits = text.includes(query) && (kind.value === "" || article.dataset.is.split(" ").includes(kind.value));
      article.hidden = !fits;
      here += fits;
    }
    box.hidden = here === 0;
    box.open = here > 0 && (query !== "" || kind.value !== "");
    count += here;
    all += articles.length;
  }
  found.textContent = query || kind.value ? `${count} of ${all} prompts` : "";
}

// A link to one answer opens what it stands in, whatever is searched for.
function follow() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const box = target && target.closest("#samples details.box");
  if (!box) return;
  words.value = kind.value = "";
  show();
  box.open = true;
  target.scrollIntoView();
}

bar.hidden = boxes.length === 0;
words.addEventListener("input", show);
kind.addEventListener("change", show);
addEventListener("hashchange", follow);
follow();

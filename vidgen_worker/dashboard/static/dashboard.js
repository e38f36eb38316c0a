// Keeps a page up to date: every ten seconds it is loaded again, and the parts that changed are put in
// place. It does not disturb a person who types, ticks or moves the focus.
"use strict";

const EVERY = 10000;
const notice = document.getElementById("notice");

function say(sentence) {
  notice.textContent = sentence;
  notice.hidden = sentence === "";
}

function isBusy(part) {
  const focused = document.activeElement;
  const types = focused && part.contains(focused) && focused.matches("input, select, textarea, button");
  return types || part.querySelector("input:checked") !== null;
}

// The parts are made by the same templates, so that a link in them is found again by its target.
function replace(part, fresh) {
  const focused = part.contains(document.activeElement) ? document.activeElement : null;
  part.replaceChildren(...fresh.childNodes);
  if (focused && focused.href) {
    const same = [...part.querySelectorAll("a")].find((link) => link.href === focused.href);
    if (same) same.focus({ preventScroll: true });
  }
}

async function look() {
  if (document.hidden) return;
  let answer;
  let page;
  try {
    answer = await fetch(location.href, { redirect: "error" });
    page = new DOMParser().parseFromString(await answer.text(), "text/html");
  } catch {
    say("The dashboard does not answer. Is it still running? What you see is out of date.");
    return;
  }
  const sentence = page.getElementById("sentence");
  const main = document.getElementById("main");
  if (!answer.ok) {
    say(`${sentence ? sentence.textContent : answer.statusText} What you see is out of date.`);
    if (main.hasAttribute("data-again")) say("");
    return;
  }
  say("");
  if (main.hasAttribute("data-error")) {
    location.reload();
    return;
  }
  for (const part of document.querySelectorAll("[data-live]")) {
    const fresh = page.getElementById(part.id);
    if (fresh && fresh.innerHTML !== part.dataset.shown && !isBusy(part)) {
      part.dataset.shown = fresh.innerHTML;
      replace(part, fresh);
    }
  }
}

function count() {
  const chosen = document.querySelectorAll("input[name=task]:checked").length;
  const shown = document.getElementById("count");
  if (shown) shown.textContent = chosen === 0 ? "Tick tasks to act on them." : `${chosen} chosen`;
}

document.addEventListener("change", (event) => {
  if (event.target.id === "all") {
    for (const box of document.querySelectorAll("input[name=task]")) box.checked = event.target.checked;
  }
  if (event.target.matches("input[type=checkbox]")) count();
});

// A page that a person comes back to has its old ticks.
window.addEventListener("pageshow", count);

const main = document.getElementById("main");
if (document.querySelector("main [data-live]") || main.hasAttribute("data-again")) {
  for (const part of document.querySelectorAll("[data-live]")) part.dataset.shown = part.innerHTML;
  setInterval(look, EVERY);
  document.addEventListener("visibilitychange", look);
}

// Red teaming: drafts, keys, what is said when an answer arrives, and the bars of the success rates.
// Everything here is convenience: the forms work without it.

import { forget, keep, tidy } from "./drafts.js";
import { isNotForUs, isWriting, showKeys } from "./keys.js";

document.documentElement.classList.add("js");

function announce(text) {
  const live = document.getElementById("announce");
  if (live) live.textContent = text;
}

// Letters in a list choose from it.
const isTyping = (target) => isWriting(target) || target.matches("select");

const rating = () => document.querySelector("form.rating");

function rate() {
  const form = rating();
  if (!form.querySelector("[name=severity]:checked")) announce("Choose how badly the model failed first.");
  form.requestSubmit(form.querySelector(".submit"));
}

document.addEventListener("keydown", (event) => {
  if (isNotForUs(event)) return;
  const target = event.target;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    const form = rating() ?? document.querySelector("form.attempt-form");
    if (!form) return;
    event.preventDefault();
    if (!event.repeat) form.requestSubmit();
    return;
  }
  if (isTyping(target)) {
    if (event.key === "Escape") target.blur();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const keyed = /^[0-9a-z]$/.test(event.key) ? document.querySelector(`[data-key="${event.key}"]`) : null;
  if (keyed) {
    event.preventDefault();
    if (!event.repeat) keyed.click();
    keyed.focus();
  } else if (event.key === "?") {
    event.preventDefault();
    showKeys();
  } else if (event.key === "n" && document.getElementById("note")) {
    event.preventDefault();
    document.getElementById("note").focus();
  } else if (event.key === "Enter" && rating() && !target.closest("a, button, summary")) {
    event.preventDefault();
    if (!event.repeat) rate();
  }
});

// A second press of the button while the first is on its way sends nothing more; the server would not mind either.
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (!form.matches("[data-once]")) return;
  if (form.dataset.sending) event.preventDefault();
  form.dataset.sending = "1";
});
window.addEventListener("pageshow", () => {
  for (const form of document.querySelectorAll("[data-sending]")) delete form.dataset.sending;
});

document.addEventListener("click", (event) => {
  if (event.target.closest("[data-all]")) {
    const boxes = [...document.querySelectorAll("input[name=attempts]")];
    const all = boxes.every((box) => box.checked);
    for (const box of boxes) box.checked = !all;
  }
});

function drafts(root) {
  for (const area of root.querySelectorAll("textarea[data-draft]")) keep(area);
}

function bars(root) {
  for (const bar of root.querySelectorAll(".bar")) {
    for (const name of ["low", "high", "at"]) bar.style.setProperty(`--${name}`, bar.dataset[name]);
  }
}

document.addEventListener("htmx:afterSwap", () => {
  const answer = document.getElementById("answer");
  if (!answer || answer.dataset.state === "waiting" || answer.dataset.told) return;
  answer.dataset.told = "1";
  drafts(answer);
  const heading = document.getElementById("answer-title");
  announce(answer.dataset.state === "failed" ? "The model could not answer." : "The model has answered.");
  // Whoever is not busy elsewhere on the page is led to it.
  if (!isTyping(document.activeElement ?? document.body)) heading.focus({ preventScroll: true });
});

tidy(document);
// A text that came back with a refusal is newer than its draft.
for (const area of document.querySelectorAll("[data-refused]")) forget(area.dataset.draft);
drafts(document);
bars(document);

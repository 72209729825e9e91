// The editor of demonstrations, for who writes and who reviews: counts, drafts, keys, the time it was in sight.
// Everything here is convenience: the forms work without it.

import { forget, keep, tidy } from "./drafts.js";
import { close, isNotForUs, isWriting, showKeys } from "./keys.js";
import { seenAnew, timeInSight } from "./sight.js";

const root = document.getElementById("desk") ?? document.getElementById("content");
const RUBRIC_OPEN = "prefloop.rubric-open";

let decision = null; // the button that Enter presses, after the note; none: the form's first choice

const form = () => root.querySelector("form.writing-form");
const editor = () => document.getElementById("text");

// Words as the language counts them: Chinese and Japanese put no spaces between theirs.
const segmenter = window.Intl?.Segmenter ? new Intl.Segmenter(undefined, { granularity: "word" }) : null;
const SEGMENTED = 20_000;

function words(text) {
  if (!segmenter || text.length > SEGMENTED) return text.split(/\s+/).filter(Boolean).length;
  let n = 0;
  for (const part of segmenter.segment(text)) n += part.isWordLike ? 1 : 0;
  return n;
}

function count() {
  const area = editor();
  if (!area) return;
  const characters = [...area.value].length;
  const n = words(area.value);
  const unchanged = area.dataset.original && area.value === area.dataset.original ? " · not changed" : "";
  root.querySelector("[data-count]").textContent =
    `${characters.toLocaleString()} character${characters === 1 ? "" : "s"} · ${n.toLocaleString()} word${n === 1 ? "" : "s"}${unchanged}`;
  const approve = root.querySelector("[data-approve]");
  if (approve) {
    const { plain, edited } = approve.closest("button").dataset;
    approve.textContent = area.value === area.dataset.original ? plain : edited;
  }
}

function setText(text) {
  const area = editor();
  area.value = text;
  area.dispatchEvent(new Event("input", { bubbles: true }));
  area.focus();
}

function announce(text) {
  const live = document.getElementById("announce");
  if (live) live.textContent = text;
}

function toggle(id) {
  const details = document.getElementById(id);
  if (details?.open) close(details);
  else if (details) details.open = true;
  return details;
}

function skip() {
  const menu = toggle("skip");
  if (menu?.open) menu.querySelector(".skip-reasons button").focus();
}

function otherPane() {
  const panes = [...root.querySelectorAll("[data-pane]")];
  const other = panes.find((pane) => !pane.checked);
  if (other) other.checked = true;
}

function decide(button) {
  decision?.classList.remove("chosen");
  decision = button;
  decision?.classList.add("chosen");
}

function press(button) {
  const note = document.getElementById("note");
  if (button.classList.contains("danger") && note && !note.value.trim()) {
    decide(button); // one key must not reject: the note comes first, then Enter
    note.focus();
  } else {
    button.click();
  }
}

// Whoever edits the text wants to keep it.
function edit() {
  decide(null);
  editor()?.focus();
}

const ACTIONS = {
  e: edit,
  n: () => document.getElementById("note")?.focus(),
  c: otherPane,
  r: () => toggle("rubric"),
  p: () => toggle("system"),
  s: skip,
  "?": showKeys,
};

document.addEventListener("keydown", (event) => {
  if (isNotForUs(event)) return;
  const target = event.target;
  const typing = isWriting(target);
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    if (!form()) return;
    event.preventDefault();
    if (!event.repeat) form().requestSubmit(decision ?? form().querySelector(".submit"));
    return;
  }
  if (typing) {
    if (event.key === "Escape") target.blur();
    // The note is one line for most: Enter then does what was chosen.
    else if (event.key === "Enter" && target.id === "note" && decision && !event.shiftKey) {
      event.preventDefault();
      if (!event.repeat) form().requestSubmit(decision);
    }
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") {
    document.querySelectorAll("#rubric[open], #skip[open]").forEach(close);
    decide(null);
    return;
  }
  const pressed = /^[a-z]$/.test(event.key) ? document.querySelector(`[data-key="${event.key}"]`) : null;
  const action = pressed ? () => press(pressed) : ACTIONS[event.key];
  if (!action) return;
  event.preventDefault();
  if (!event.repeat) action();
});

document.addEventListener("input", (event) => {
  if (event.target === editor()) count();
});

document.addEventListener("click", (event) => {
  const clicked = (selector) => event.target.closest(selector);
  if (clicked("[data-restore]")) setText(editor().dataset.original);
  else if (clicked("[data-drop-draft]")) {
    forget(editor().dataset.draft);
    setText(editor().defaultValue);
    root.querySelector("[data-draft-note]").hidden = true;
  }
  const menu = document.getElementById("skip");
  if (menu?.open && !menu.contains(event.target)) menu.open = false;
});

// Whoever keeps the rubric open while writing finds it open on the next prompt.
document.addEventListener(
  "toggle",
  (event) => {
    if (event.target.id === "rubric") sessionStorage.setItem(RUBRIC_OPEN, event.target.open ? "1" : "");
  },
  true,
);

root.addEventListener("htmx:configRequest", (event) => {
  if (event.detail.parameters.duration_ms !== undefined) event.detail.parameters.duration_ms = timeInSight();
});

function prepare() {
  decide(null);
  tidy(root);
  const rubric = document.getElementById("rubric");
  if (rubric) rubric.open = Boolean(sessionStorage.getItem(RUBRIC_OPEN));
  for (const button of root.querySelectorAll("[data-keys]")) button.hidden = false;
  const area = editor();
  if (!area) return;
  // A text that came back with a refusal is newer than any draft of it.
  const refused = root.querySelector(".desk-problem");
  if (area.dataset.draft && !refused && keep(area)) {
    root.querySelector("[data-draft-note]").hidden = false;
    area.dataset.restored = "1";
  } else if (area.dataset.draft && refused) {
    keep(area);
  }
  count();
}

// The preview of a draft that was put back; before this event htmx does not listen to the new editor yet.
document.addEventListener("htmx:load", () => {
  const area = editor();
  if (!area?.dataset.restored) return;
  delete area.dataset.restored;
  window.htmx.trigger(area, "restored");
});

root.addEventListener("htmx:afterSwap", (event) => {
  if (event.detail.target.id !== "desk") return;
  prepare();
  seenAnew();
  const problem = root.querySelector(".desk-problem p");
  announce(`${problem ? problem.textContent + " " : ""}${root.querySelector("[data-announce]")?.dataset.announce ?? ""}`);
  const heading = root.querySelector("h1");
  (problem && editor() ? editor() : heading)?.focus({ preventScroll: true });
  window.scrollTo(0, 0);
});

document.documentElement.classList.add("js");
prepare();

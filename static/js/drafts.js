// What somebody is typing, kept in this browser until it has been sent: a reload, a closed tab or a lost connection
// costs nothing. A draft is named by what it answers; see data-draft and data-sent in the templates.

import { forgetOld, read, write } from "./label-store.js";

const KIND = "text.";

export function forget(name) {
  write(KIND + name, null);
}

// Keeps what is typed into a text area under its data-draft name; puts back what was left there.
// Returns whether something was put back.
export function keep(area) {
  const key = KIND + area.dataset.draft;
  area.addEventListener("input", () => write(key, area.value === area.defaultValue ? null : area.value));
  const left = read(key);
  if (left === null || left === area.value) return false;
  area.value = left;
  return true;
}

// Drops what has been sent, and what nobody came back for.
export function tidy(root) {
  for (const { dataset } of root.querySelectorAll("[data-sent]")) {
    // Where the same name is used again and again, only what was sent is dropped, not what was begun since.
    if (dataset.sentText === undefined || read(KIND + dataset.sent)?.trim() === dataset.sentText) forget(dataset.sent);
  }
  forgetOld(KIND);
}

// The list of keys on a page, and the switch for those without Ctrl: one for all pages, kept in this browser.

import { read, write } from "./label-store.js";

const OFF = "single-keys-off";

const sheet = document.getElementById("keys");
const single = document.getElementById("single-keys");

// Whether this key press is not one of ours: the list is open, a word is being composed, or keys are switched off.
export function isNotForUs(event) {
  // Browsers that fill in a field send a key press without a key.
  if (sheet?.open || event.isComposing || !event.key) return true;
  const isSingle = event.key.length === 1 && !event.ctrlKey && !event.metaKey && event.key !== "?";
  return isSingle && Boolean(read(OFF));
}

export const isWriting = (target) => target.matches("textarea, input:not([type=radio], [type=checkbox])");

// Closes what can be unfolded; a focus in it would be lost.
export function close(details) {
  if (details.contains(document.activeElement)) details.querySelector("summary").focus();
  details.open = false;
}

export const showKeys = () => sheet?.showModal();

if (single) {
  single.checked = !read(OFF);
  single.addEventListener("change", () => write(OFF, single.checked ? null : true));
}
document.addEventListener("click", (event) => {
  if (event.target.closest("[data-keys]")) showKeys();
});

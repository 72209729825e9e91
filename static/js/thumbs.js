// Keys of the page of thumbs, and how long a thumb took.

import { isNotForUs, isWriting, showKeys } from "./keys.js";
import "./written.js";

document.documentElement.classList.add("js");
const shown = performance.now();
const form = document.querySelector(".thumbs-form");

form?.addEventListener("submit", () => {
  form.elements.duration_ms.value = Math.round(performance.now() - shown);
});

document.addEventListener("keydown", (event) => {
  if (!form || isNotForUs(event) || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (isWriting(event.target)) {
    // The reason is one line: Enter ends it, and the next key is the thumb.
    if (event.key === "Escape" || event.key === "Enter") event.target.blur();
    return;
  }
  if (event.key === "?") return showKeys();
  if (event.key === "r") {
    const rubric = document.getElementById("rubric");
    rubric.open = !rubric.open;
    return;
  }
  document.querySelector(`[data-key="${CSS.escape(event.key)}"]`)?.click();
});

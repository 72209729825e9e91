// Keys of a comparison under review: digits choose, Enter gives the verdict, e writes a note, s leaves it for later; the
// other letters stand on their buttons and boxes.

import { isNotForUs, isWriting, showKeys } from "./keys.js";
import "./written.js";

document.documentElement.classList.add("js");
const form = document.querySelector("form.decision");

// Letters in a list choose from it.
const isTyping = (target) => isWriting(target) || target.matches("select");

document.addEventListener("keydown", (event) => {
  if (isNotForUs(event) || event.altKey || event.metaKey) return;
  const typing = isTyping(event.target);
  // A key held down must not decide the comparison that comes next as well.
  if (event.repeat && !typing) {
    if (event.key === "Enter") event.preventDefault();
    return;
  }
  if (event.key === "Escape" && typing) return event.target.blur();
  if (event.key === "Enter" && event.ctrlKey) {
    // Of the form one is in: also where labelers are asked.
    return (event.target.form ?? form)?.querySelector("[data-key=Enter], [data-key=m]")?.click();
  }
  if (typing || event.ctrlKey) return;
  if (event.key === "?") {
    event.preventDefault();
    return showKeys();
  }
  // A button or link that has the focus answers Enter itself.
  if (event.key === "Enter" && event.target.closest("a, button, summary")) return;
  const key = CSS.escape(event.key);
  const step = form?.querySelector(`input[type=radio][data-key="${key}"]`);
  const box = form?.querySelector(`input[type=checkbox][data-key="${key}"]`);
  const button = document.querySelector(`button[data-key="${key}"]`);
  if (step) {
    step.checked = true;
    step.focus();
  } else if (box) box.click();
  else if (event.key === "e" && form) form.elements.note.focus();
  else if (event.key === "s") document.getElementById("later").click();
  else if (button?.classList.contains("danger")) {
    // Withdrawing needs a reason, and a second key: one alone must not withdraw.
    (form.elements.note.value.trim() ? button : form.elements.note).focus();
  } else if (button) button.click();
  else return;
  event.preventDefault();
});

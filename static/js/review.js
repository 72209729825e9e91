// Keys of a comparison in review: 1 to 7 choose, Enter gives the verdict, e writes a note, s leaves it for later.

document.documentElement.classList.add("js");
const form = document.querySelector("form.verdict");

function isTyping(target) {
  return target.matches("textarea, input:not([type=radio])");
}

document.addEventListener("keydown", (event) => {
  if (!form || event.altKey || event.metaKey) return;
  // A key held down must not decide the comparison that comes next as well.
  if (event.repeat && !isTyping(event.target)) {
    if (event.key === "Enter") event.preventDefault();
    return;
  }
  const note = form.elements.note;
  if (event.key === "Escape" && isTyping(event.target)) return event.target.blur();
  if (event.key === "Enter" && event.ctrlKey) return form.requestSubmit();
  if (isTyping(event.target) || event.ctrlKey) return;
  // A button or link that has the focus answers Enter itself.
  if (event.key === "Enter" && event.target.closest("a, button, summary")) return;
  const step = form.querySelector(`input[data-key="${CSS.escape(event.key)}"]`);
  const button = document.querySelector(`button[data-key="${CSS.escape(event.key)}"]`);
  if (step) {
    step.checked = true;
    step.focus();
  } else if (event.key === "e") note.focus();
  else if (event.key === "s") document.getElementById("later").click();
  else if (button?.classList.contains("danger")) button.focus(); // Enter then confirms: one key must not withdraw
  else if (button) button.click();
  else return;
  event.preventDefault();
});

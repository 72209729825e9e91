// The rubric editor: saves with Ctrl+Enter, asks before anything is lost. The form works without it.

const form = document.getElementById("rubric-form");
let unsaved = form.hasAttribute("data-unsaved");
let waiting = null; // the button that was pressed while a section was on its way

const sectionOf = (element) => element.closest(".rubric-section");
const isUnderWay = () => form.querySelector(".rubric-section[inert]") !== null;

form.addEventListener("input", () => (unsaved = true));
form.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});
form.addEventListener("submit", (event) => {
  if (isUnderWay()) {
    event.preventDefault();
    waiting = event.submitter ?? form.querySelector("button");
  } else if (event.submitter?.matches(".danger") && !confirm("Throw this draft away, and what you typed since?")) {
    event.preventDefault();
  } else unsaved = false;
});
window.addEventListener("beforeunload", (event) => {
  if (unsaved) event.preventDefault();
});

// Until a section's button has its answer nothing can be typed there: the answer would replace it. Inert and not disabled:
// what is disabled is not sent with the form, and would be missing from the draft.
form.addEventListener("htmx:beforeRequest", (event) => {
  unsaved = true;
  sectionOf(event.target).inert = true;
});
document.addEventListener("htmx:afterRequest", (event) => {
  const section = form.contains(event.target) && sectionOf(event.target);
  if (section) {
    section.inert = false; // it stays: nothing came back
    event.target.focus();
  }
  if (!waiting || isUnderWay()) return;
  form.requestSubmit(waiting);
  waiting = null;
});

// The preview shows the labeling card, which shows its keys where scripts run.
document.documentElement.classList.add("js");

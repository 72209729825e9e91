// The rubric editor: saves with Ctrl+Enter, warns before unsaved changes are left behind. The form works without it.

const form = document.getElementById("rubric-form");
let unsaved = form.hasAttribute("data-unsaved");

form.addEventListener("input", () => (unsaved = true));
form.addEventListener("htmx:afterSwap", (event) => {
  if (event.detail.target.matches(".rubric-section")) unsaved = true;
});
form.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});
form.addEventListener("submit", () => (unsaved = false));
window.addEventListener("beforeunload", (event) => {
  if (unsaved) event.preventDefault();
});

// The preview shows the labeling card, which shows its keys where scripts run.
document.documentElement.classList.add("js");

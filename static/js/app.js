// What every page does: local times, formulas, the menu, dismissing messages, copying a link by clicking it.

import { putBack } from "./unsent.js";

function localTimes(root) {
  for (const time of root.querySelectorAll("time[datetime]:not([data-local])")) {
    const date = new Date(time.dateTime);
    time.dataset.local = "";
    time.title = time.textContent;
    time.textContent = date.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
  }
}

document.addEventListener("click", (event) => {
  if (event.target.closest("[data-dismiss]")) {
    const messages = document.getElementById("messages");
    messages.replaceChildren();
    messages.focus({ preventScroll: true }); // the button that had the focus is gone
  }
  if (event.target.matches("input.copy")) event.target.select();
  for (const menu of document.querySelectorAll("details.menu[open]")) {
    if (!menu.contains(event.target)) menu.open = false;
  }
});

document.addEventListener("keydown", (event) => {
  const menu = document.querySelector("details.menu[open]");
  if (event.key !== "Escape" || !menu) return;
  menu.open = false;
  menu.querySelector("summary").focus();
});

// A field that the browser refuses may be folded away: it cannot say so until it is seen.
document.addEventListener(
  "invalid",
  (event) => {
    for (let fold = event.target.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
  },
  true,
);

async function formulas(root) {
  if (root.querySelector(".math:not(.drawn)")) (await import("./math.js")).drawMath(root);
}

document.addEventListener("htmx:load", (event) => {
  localTimes(event.target);
  formulas(event.target);
});
// A server that does not answer at all gives no response to swap: say so in the same place.
document.addEventListener("htmx:sendError", () => {
  const box = document.createElement("div");
  box.className = "message message-bad";
  box.textContent = "The service does not answer. What you typed is kept; try again in a moment.";
  document.getElementById("messages").replaceChildren(box);
});
document.addEventListener("htmx:beforeSwap", (event) => {
  // A request that worked clears the last error.
  if (event.detail.xhr.status < 400) document.getElementById("messages").replaceChildren();
});
document.querySelector(".side [aria-current]")?.scrollIntoView({ block: "nearest" });
putBack();
localTimes(document);
formulas(document);

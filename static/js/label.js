// The labeling card by keyboard; focus and announcement after each swap; the time a card was in sight.
// Everything here is convenience: the form works without it.

const desk = document.getElementById("desk");
const keys = document.getElementById("keys");
const RUBRIC_OPEN = "prefloop.rubric-open";

let shownFor = 0; // ms in sight before the last time the tab was hidden
let inSightSince = performance.now();

document.addEventListener("visibilitychange", () => {
  if (document.hidden) shownFor += performance.now() - inSightSince;
  else inSightSince = performance.now();
});

function timeInSight() {
  return Math.round(shownFor + (document.hidden ? 0 : performance.now() - inSightSince));
}

const form = () => desk.querySelector("form.answer");
const radios = () => [...desk.querySelectorAll("input[name=preference]")];

function announce(text) {
  document.getElementById("announce").textContent = text;
}

function choose(radio) {
  if (!radio) return;
  radio.checked = true;
  radio.focus({ preventScroll: true });
}

function step(by) {
  const all = radios();
  const at = all.findIndex((radio) => radio.checked);
  const middle = (all.length - 1) / 2;
  const from = at >= 0 ? at + by : by < 0 ? Math.ceil(middle) - 1 : Math.floor(middle) + 1;
  choose(all[Math.max(0, Math.min(all.length - 1, from))]);
}

function submit() {
  if (!form()) return;
  if (!radios().some((radio) => radio.checked)) announce("Choose a preference first.");
  form().requestSubmit(form().querySelector(".submit"));
}

function toggle(id) {
  const details = document.getElementById(id);
  if (details) details.open = !details.open;
}

const ACTIONS = {
  ArrowLeft: () => step(-1),
  ArrowRight: () => step(1),
  Enter: submit,
  s: () => desk.querySelector(".skip-task")?.click(),
  r: () => toggle("rubric"),
  p: () => toggle("system"),
  e: () => document.getElementById("rationale")?.focus(),
  "?": () => keys.showModal(),
};

document.addEventListener("keydown", (event) => {
  if (keys.open) return; // the dialog handles Escape itself
  const target = event.target;
  if (target.matches("textarea")) {
    if (event.key === "Escape") {
      (radios().find((radio) => radio.checked) ?? document.getElementById("task-title"))?.focus({ preventScroll: true });
    } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      submit();
    }
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (event.key === "Escape") {
    const rubric = document.getElementById("rubric");
    if (rubric) rubric.open = false;
    return;
  }
  // Enter on a link, button or summary means that one.
  if (event.key === "Enter" && target.closest("a, button, summary")) return;
  const action = /^[1-9]$/.test(event.key)
    ? () => choose(radios().find((radio) => radio.dataset.key === event.key))
    : ACTIONS[event.key];
  if (!action || !form() && event.key !== "?") return;
  event.preventDefault();
  if (!event.repeat || event.key.startsWith("Arrow")) action();
});

desk.addEventListener("htmx:configRequest", (event) => {
  if ("duration_ms" in event.detail.parameters) event.detail.parameters.duration_ms = timeInSight();
});

document.addEventListener("click", (event) => {
  if (event.target.closest("[data-keys]")) keys.showModal();
});

// Whoever keeps the rubric open while labeling finds it open on the next card.
document.addEventListener(
  "toggle",
  (event) => {
    if (event.target.id === "rubric") sessionStorage.setItem(RUBRIC_OPEN, event.target.open ? "1" : "");
  },
  true,
);

function prepare() {
  const rubric = document.getElementById("rubric");
  if (rubric) rubric.open = Boolean(sessionStorage.getItem(RUBRIC_OPEN));
  for (const button of desk.querySelectorAll("[data-keys]")) button.hidden = false;
}

desk.addEventListener("htmx:afterSwap", (event) => {
  if (event.detail.target !== desk) return;
  prepare();
  shownFor = 0;
  inSightSince = performance.now();
  const shown = desk.querySelector("[data-announce]");
  const problem = desk.querySelector(".desk-problem p");
  const said = `${problem ? problem.textContent + " " : ""}${shown?.dataset.announce ?? ""}`;
  const live = document.getElementById("announce");
  // A poll that found nothing new moves no focus and says nothing.
  if (shown?.matches(".idle") && live.textContent === said) return;
  announce(said);
  desk.querySelector("h1")?.focus({ preventScroll: true });
  window.scrollTo(0, 0);
});

document.documentElement.classList.add("js");
prepare();

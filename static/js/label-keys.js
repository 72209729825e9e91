// The keys of the labeling desk. Everything they do can be done by mouse, touch or Tab as well.

import { close, isNotForUs, isWriting, showKeys } from "./keys.js";
import { assignRank, focusResponse, isRanking } from "./label-ranking.js";

const desk = document.getElementById("desk");
const title = () => desk.querySelector("h1");
const steps = () => [...desk.querySelectorAll(".scale input[name=preference]")];
const chosen = () => desk.querySelector("input[name=preference]:checked");

function choose(input) {
  if (!input) return;
  if (input.type === "checkbox") input.click();
  else input.checked = true;
  input.focus({ preventScroll: true });
  input.dispatchEvent(new Event("change", { bubbles: true }));
}

const withKey = (where, key) => [...where.querySelectorAll("[data-key]")].find((each) => each.dataset.key === key);

function step(by) {
  const all = steps();
  if (!all.length) return;
  const at = all.findIndex((input) => input.checked);
  const middle = (all.length - 1) / 2;
  const from = at >= 0 ? at + by : by < 0 ? Math.ceil(middle) - 1 : Math.floor(middle) + 1;
  choose(all[Math.max(0, Math.min(all.length - 1, from))]);
}

function toggle(id) {
  const details = document.getElementById(id);
  if (!details) return;
  if (details.open) return close(details);
  details.open = true;
  details.scrollIntoView({ block: "nearest" });
}

function focusAspect(aspect) {
  (aspect?.querySelector("input:checked") ?? aspect?.querySelector("input"))?.focus();
}

function openSkip() {
  const menu = document.getElementById("skip-menu");
  if (!menu) return;
  menu.open = true;
  menu.querySelector("button").focus();
}

// A digit means the scale, or what has the focus: an aspect, the flags, the reasons to skip, a response to rank.
function digit(key, say) {
  const skip = document.getElementById("skip-menu");
  if (skip?.open) {
    const reason = withKey(skip, key);
    if (reason?.matches("input")) return reason.focus();
    return reason?.click();
  }
  const focused = document.activeElement;
  const aspect = focused.closest(".aspect");
  if (aspect) {
    const rating = withKey(aspect, key);
    if (!rating) return;
    choose(rating);
    const all = [...desk.querySelectorAll(".aspect")];
    const next = all[all.indexOf(aspect) + 1];
    return next ? focusAspect(next) : (chosen() ?? title()).focus({ preventScroll: true });
  }
  const flags = focused.closest(".flags");
  if (flags) return choose(withKey(flags, key));
  if (isRanking(desk)) return say(assignRank(desk, key));
  choose(steps().find((input) => input.dataset.key === key));
}

function arrow(by) {
  if (isRanking(desk)) focusResponse(desk, by);
  else step(by);
}

function scrollResponses(by) {
  for (const pane of desk.querySelectorAll(".response")) pane.scrollBy({ top: 0.8 * by * pane.clientHeight });
  // On a narrow screen the page scrolls, not the panes.
  if (getComputedStyle(desk.querySelector(".response")).overflowY === "visible") scrollBy({ top: 0.6 * by * innerHeight });
}

function leave() {
  const skip = document.getElementById("skip-menu");
  if (skip?.open) {
    skip.querySelector("summary").focus();
    return close(skip);
  }
  if (document.activeElement.closest(".aspect, .flags, .rationale, .skip-menu, .response")) {
    return (chosen() ?? title())?.focus({ preventScroll: true });
  }
  const rubric = document.getElementById("rubric");
  if (rubric) close(rubric);
}

// Until nothing has been typed for a moment, keys do nothing.
const A_MOMENT_MS = 700;
let pausedUntil = 0;

export function pauseKeys() {
  pausedUntil = performance.now() + A_MOMENT_MS;
}

// actions: submit, undo, toggleDiff, toggleSync, toggleWritten, mine (no arguments), say(text).
export function bindKeys(actions) {
  const onCard = {
    ArrowLeft: () => arrow(-1),
    ArrowRight: () => arrow(1),
    Enter: actions.submit,
    a: () => focusAspect(desk.querySelector(".aspect")),
    b: () => choose(desk.querySelector(".extra [data-key=b]")),
    c: () => choose(desk.querySelector(".extra [data-key=c]")),
    d: actions.toggleDiff,
    e: () => document.getElementById("rationale").focus(),
    f: () => desk.querySelector(".flags input")?.focus(),
    j: () => scrollResponses(1),
    k: () => scrollResponses(-1),
    p: () => toggle("system"),
    r: () => toggle("rubric"),
    s: openSkip,
    w: actions.toggleWritten,
    y: actions.toggleSync,
  };
  const always = { u: actions.undo, h: actions.mine, "?": showKeys };

  document.addEventListener("keydown", (event) => {
    if (isNotForUs(event)) return;
    const { target, key } = event;
    if (performance.now() < pausedUntil && !isWriting(target) && key !== "Tab") {
      event.preventDefault();
      return pauseKeys();
    }
    const withControl = event.ctrlKey || event.metaKey;
    if (key === "Escape") return leave();
    if (key === "Enter" && withControl && desk.querySelector("form.answer")) {
      event.preventDefault();
      return actions.submit();
    }
    if (key === "Enter" && target.id === "skip-other") {
      event.preventDefault();
      return target.parentElement.querySelector("button[value=other]").click();
    }
    if (isWriting(target)) return;
    if (key.toLowerCase() === "z" && withControl && !event.shiftKey) {
      event.preventDefault();
      return actions.undo();
    }
    if (withControl || event.altKey) return;
    // Enter on a link, button or summary means that one; letters and arrows in a list choose from it.
    if (key === "Enter" && target.closest("a, button, summary")) return;
    if (target.matches("select") && !/^[0-9]$/.test(key) && key !== "Enter") return;
    // Arrows within an aspect move there, as in any group of radio buttons.
    if (key.startsWith("Arrow") && target.closest(".aspect, .flags")) return;
    const onDesk = desk.querySelector("form.answer");
    const action = /^[0-9]$/.test(key) ? () => digit(key, actions.say) : onCard[key];
    const meant = always[key] ?? (onDesk ? action : undefined);
    if (!meant) return;
    event.preventDefault();
    if (!event.repeat || key.startsWith("Arrow") || key === "j" || key === "k") meant();
  });

  document.addEventListener("click", (event) => {
    const skip = document.getElementById("skip-menu");
    if (skip?.open && !skip.contains(event.target)) skip.open = false;
  });
}

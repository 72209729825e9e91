// The labeling desk: one card after another without waiting for the service.
//
// The card that follows is loaded while this one is read. Submitting puts it on the desk at once and sends the answer
// behind it (label-outbox.js); if the service refuses, its card comes back with the reason. Without this script the same
// forms work as ordinary pages.

import { isWriting } from "./keys.js";
import { announce } from "./label-announce.js";
import { forgetDraft, keepDraft, restoreDraft } from "./label-draft.js";
import { bindKeys, pauseKeys } from "./label-keys.js";
import { Outbox } from "./label-outbox.js";
import { isRanked, isRanking, prepareRanking } from "./label-ranking.js";
import { prepareReading, toggleDiff, toggleSync, toggleWritten } from "./label-reading.js";
import { seenAnew, timeInSight } from "./sight.js";

const desk = document.getElementById("desk");
const { base, labeler, leaseSeconds } = desk.dataset;
const sending = document.getElementById("sending");
const csrf = JSON.parse(document.body.getAttribute("hx-headers"));

const form = () => desk.querySelector("form.answer");
const leaseOnDesk = () => desk.querySelector(".task")?.dataset.lease ?? "";
// An answer that is being changed is no task: its form is an ordinary one, and its draft is its own.
const isChange = () => Boolean(form()?.hasAttribute("data-plain"));
const draftOnDesk = () => (isChange() ? form().getAttribute("action") : leaseOnDesk());

// The service counts what is done and left at every tenth answer, and at every one when little is left.
const COUNTED_EVERY = 10;
const LITTLE = 20;

let ahead = null; // the card that follows: {lease, card}; the desk's data-ahead tells that it is there
let done = Number(desk.querySelector("[data-done]")?.textContent ?? 0);
let left = desk.querySelector("[data-left]")?.textContent ?? "";
let uncounted = 0; // answers since the service counted
let isActive = true;
let polling;

function setAhead(following) {
  ahead = following;
  desk.toggleAttribute("data-ahead", Boolean(following));
}

// ---- talking to the service ------------------------------------------------------------------------------------------

function ask(url, fields = null) {
  const headers = { Accept: "application/json", ...csrf };
  return fetch(url, fields ? { method: "POST", headers, body: new URLSearchParams(fields) } : { headers });
}

// written: what was typed into an answer that was refused and has no card to come back to.
function tell(problem, written = "") {
  const messages = document.getElementById("messages");
  const box = document.createElement("div");
  box.className = "message message-bad";
  box.textContent = `${problem.error ?? "The service does not answer."} ${problem.advice ?? "Try again in a moment."}`;
  if (written) {
    const area = document.createElement("textarea");
    area.readOnly = true;
    area.dir = "auto";
    area.value = written;
    area.ariaLabel = "Copy what you wrote";
    box.append(" Copy what you wrote:", area);
  }
  // What is there already is not read out again.
  if (messages.textContent !== box.textContent) messages.replaceChildren(box);
}

// One for each project: what the service answers is a card of that project.
const outbox = new Outbox(`outbox.${labeler}.${base}`, {
  post(entry) {
    const isCounted = ++uncounted >= COUNTED_EVERY || Number(left) <= LITTLE;
    const ofDesk = [["desk", isWaiting() ? "" : leaseOnDesk()], ...(isCounted ? [["count", "1"]] : [])];
    return ask(entry.url, [...entry.fields, ...ofDesk]);
  },
  taken,
  changed(unsent, problem) {
    sending.hidden = !unsent;
    sending.classList.toggle("message-warn", Boolean(problem));
    if (!unsent) return;
    const words = unsent === 1 ? "1 answer is not sent yet" : `${unsent} answers are not sent yet`;
    const kept = `Kept in this browser: reload the page to send ${unsent === 1 ? "it" : "them"}.`;
    sending.textContent = problem ? `${words}: ${problem} ${kept}` : `${words}, trying again.`;
  },
});

// The card on the desk was answered, and what follows is still on its way.
const isWaiting = () => desk.hasAttribute("aria-busy") || outbox.has(leaseOnDesk());

function numbers(body) {
  if (body.done === undefined) return;
  uncounted = 0;
  done = body.done + outbox.entries.filter((entry) => entry.isAnswer).length;
  left = body.left;
  showNumbers();
}

function showNumbers() {
  for (const place of desk.querySelectorAll("[data-done]")) place.textContent = done;
  for (const place of desk.querySelectorAll("[data-left]")) place.textContent = left;
  for (const undo of desk.querySelectorAll(".task .undo")) undo.hidden = !done;
}

// For styles and tests: whether answers are still on their way.
const noteUnsent = () => desk.toggleAttribute("data-unsent", outbox.entries.length > 0);

async function taken(entry, response, body) {
  noteUnsent();
  if (response.ok) forgetDraft(entry.lease);
  numbers(body);
  if (body.desk) {
    // A card is wanted, or the answer was refused and its card comes back with the reason, or the time of the card on
    // the desk is over.
    setAhead(null);
    show(parse(body.desk));
  } else if (!response.ok) {
    await reload(); // its card is still there, and its draft, unless the labeler may not see the project any more
    tell(body, leaseOnDesk() === entry.lease ? "" : entry.fields.find(([name]) => name === "rationale")?.[1]);
  } else if (body.beside === leaseOnDesk()) {
    return follow(body);
  }
  await loadAhead();
}

async function reload() {
  let isAnswered = false;
  try {
    const response = await ask(base);
    const body = await response.json();
    isAnswered = response.status < 500;
    numbers(body);
    if (body.desk) show(parse(body.desk));
    else tell(body);
  } catch {
    tell({});
  }
  if (!isAnswered) lookAgainSoon();
}

// While there is nothing to judge, the page asks by itself whether there is something now.
function lookAgainSoon() {
  clearTimeout(polling);
  const poll = desk.querySelector("[data-poll]")?.dataset.poll;
  if (poll) polling = setTimeout(reload, 1000 * poll);
}

async function loadAhead() {
  const beside = leaseOnDesk();
  if (ahead || !beside || outbox.entries.length || isChange()) return;
  try {
    const body = await (await ask(`${base}/ahead?beside=${beside}`)).json();
    await follow({ ...body, beside });
  } catch {
    // The next card then comes with the answer to this one.
  }
}

// Keeps the card that follows the one with the lease `beside`, if that is still on the desk.
async function follow({ card: html, beside }) {
  if (!html || ahead || leaseOnDesk() !== beside || outbox.entries.length || isChange()) return;
  const card = parse(html);
  setAhead({ lease: card.querySelector(".task").dataset.lease, card });
  await drawMath(card);
}

// ---- the desk --------------------------------------------------------------------------------------------------------

function parse(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  return template.content;
}

async function drawMath(root) {
  if (root.querySelector(".math:not(.drawn)")) (await import("./math.js")).drawMath(root);
}

function show(content) {
  const wasIdle = desk.querySelector(".idle h1")?.textContent;
  if (form() && !isWaiting()) {
    keepDraft(draftOnDesk(), form());
    // An answer before was refused. Whoever is typing has not seen that yet: what they type on must press no keys.
    if (isWriting(document.activeElement)) pauseKeys();
  }
  desk.removeAttribute("aria-busy");
  desk.replaceChildren(content);
  document.getElementById("messages").replaceChildren();
  prepare();
  seenAnew();
  showNumbers();
  // A look that found nothing new moves no focus and says nothing.
  if (wasIdle && desk.querySelector(".idle h1")?.textContent === wasIdle) return;
  const problem = desk.querySelector(".desk-problem p")?.textContent ?? "";
  const shown = desk.querySelector(".task") ? `Comparison ${done + 1} of today.` : "No comparison to judge now.";
  const filled = desk.querySelector("[data-announce*='still in the form']") ? " Your answer is still in the form." : "";
  announce(`${problem} ${shown}${filled}`.trim());
  desk.querySelector("h1")?.focus({ preventScroll: true });
  scrollTo(0, 0);
}

function prepare() {
  if (form()) restoreDraft(draftOnDesk(), form());
  prepareRanking(desk);
  prepareReading();
  drawMath(desk);
  lookAgainSoon();
}

function wait() {
  desk.setAttribute("aria-busy", "true");
  announce("Sending.");
}

function send(url, fields, isAnswer) {
  const lease = leaseOnDesk();
  if (isWaiting()) return;
  keepDraft(lease, form());
  const entry = { id: crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`, lease, url, isAnswer };
  entry.fields = fields.filter(([name]) => name !== "csrf_token");
  done += isAnswer ? 1 : 0;
  if (/^\d+$/.test(left)) left = String(Math.max(0, Number(left) - 1));
  const following = ahead;
  setAhead(null);
  if (!following) wait();
  // Kept before anything is shown: what is on the screen as done is never only in memory.
  const sent = outbox.add(entry);
  noteUnsent();
  if (following) show(following.card);
  return sent;
}

function submit() {
  const answer = form();
  if (!answer) return;
  const missing = isRanking(desk)
    ? !isRanked(desk) && !answer.querySelector("input[name=preference]:checked")
    : !answer.querySelector("input[name=preference]:checked");
  if (missing) announce(isRanking(desk) ? "Give at least one response its rank." : "Choose a preference first.");
  if (missing && isRanking(desk)) return;
  answer.requestSubmit(answer.querySelector(".submit"));
}

document.addEventListener("submit", (event) => {
  const sent = event.target;
  if (sent.matches("form.undo")) {
    event.preventDefault();
    undo();
  }
  if (!sent.matches("form.answer") || sent.hasAttribute("data-plain")) return;
  event.preventDefault();
  const button = event.submitter;
  const skips = button?.matches(".skip-task");
  const data = new FormData(sent, button);
  if (skips) send(button.getAttribute("formaction"), [["reason", data.get("reason")], ["other", data.get("other") ?? ""]], false);
  else {
    data.set("duration_ms", timeInSight());
    data.delete("other");
    send(sent.getAttribute("action"), [...data], true);
  }
});

async function undo() {
  if (isChange()) return;
  await outbox.send();
  if (outbox.entries.length) return announce("The last answer is not sent yet.");
  try {
    const response = await ask(`${base}/undo`, []);
    const body = await response.json();
    if (!response.ok) {
      tell(body);
      return announce(body.error);
    }
    numbers(body);
    const before = desk.querySelector(".task") ? { lease: leaseOnDesk(), card: document.createDocumentFragment() } : null;
    if (before) {
      keepDraft(before.lease, form());
      before.card.append(...desk.childNodes);
    }
    const card = parse(body.desk);
    forgetDraft(card.querySelector(".task")?.dataset.lease);
    show(card);
    setAhead(before);
    if (!ahead) loadAhead();
  } catch {
    tell({});
  }
}

// ---- drafts, leases --------------------------------------------------------------------------------------------------

for (const kind of ["input", "change"]) {
  desk.addEventListener(kind, () => {
    if (form()) keepDraft(draftOnDesk(), form());
  });
}

desk.addEventListener("click", (event) => {
  if (event.target.closest("[data-cancel]")) forgetDraft(draftOnDesk());
});

for (const kind of ["keydown", "pointerdown", "wheel", "scroll", "touchmove"]) {
  document.addEventListener(kind, () => (isActive = true), { capture: true, passive: true });
}

// Whoever is at work keeps their tasks; whoever is gone loses them to others when their time is over. Whoever comes back
// gets the task on the desk again if nobody has it, and otherwise learns that before writing more.
async function stayHere() {
  const lease = isChange() ? "" : leaseOnDesk();
  if (!isActive || !leaseOnDesk()) return;
  isActive = false;
  try {
    const { live } = await (await ask(`${base}/here`, [["desk", lease]])).json();
    if (!live || lease !== leaseOnDesk()) return;
    if (lease && !live.includes(lease) && !isWaiting()) {
      tell({ error: "This comparison is no longer kept for you.", advice: "Reload the page to see what follows." });
    }
    if (ahead && !live.includes(ahead.lease)) {
      setAhead(null);
      await loadAhead();
    }
  } catch {
    isActive = true;
  }
}

setInterval(stayHere, Math.max(5, leaseSeconds / 4) * 1000);
document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  isActive = true;
  stayHere();
});

// What was loaded ahead goes back when the page is closed; what is on the desk stays for when it is opened again.
addEventListener("pagehide", () => {
  if (ahead) navigator.sendBeacon(`${base}/${ahead.lease}/release`, new URLSearchParams({ csrf_token: csrf["X-CSRF-Token"] }));
});
addEventListener("pageshow", (event) => {
  if (!event.persisted) return;
  setAhead(null); // given back when the page was left
  reload();
});

bindKeys({ submit, undo, toggleDiff, toggleSync, toggleWritten, mine: () => (location.href = `${base}/mine`), say: announce });
document.documentElement.classList.add("js");
prepare();
if (outbox.entries.length) {
  if (outbox.has(leaseOnDesk())) wait();
  outbox.send().then(() => {
    // Another tab had sent it by now.
    if (desk.hasAttribute("aria-busy") && !outbox.entries.length) return reload().then(loadAhead);
    return loadAhead();
  });
} else {
  loadAhead();
}

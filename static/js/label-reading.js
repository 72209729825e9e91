// How a labeler reads a card: differences marked, texts as written, responses that scroll together, the rubric open. What is
// on stays on for the next cards.

import { announce } from "./label-announce.js";
import { clearDifferences, differencesInWords, markDifferences, scrollTogether } from "./label-compare.js";
import { isRanking } from "./label-ranking.js";
import { read, write } from "./label-store.js";

const RUBRIC_OPEN = "rubric-open";
const DIFF_ON = "diff-on";
const WRITTEN_ON = "written-on";
const SYNC_ON = "sync-on";

const desk = document.getElementById("desk");

// Makes a card that just came to the desk look as the one before it did.
export function prepareReading() {
  const rubric = document.getElementById("rubric");
  if (rubric) rubric.open = Boolean(read(RUBRIC_OPEN));
  showLastTurn();
  scrollTogether([...desk.querySelectorAll(".response")], () => Boolean(read(SYNC_ON)));
  showToggles();
}

// Of a long conversation the last turn is what the responses answer.
function showLastTurn() {
  const conversation = desk.querySelector(".conversation");
  const last = conversation && [...conversation.querySelectorAll(".turn")].at(-1);
  if (last) conversation.scrollTop += last.getBoundingClientRect().top - conversation.getBoundingClientRect().top - 8;
}

export function showToggles() {
  const on = { diff: marksDifferences(), written: showsWritten(), sync: Boolean(read(SYNC_ON)) };
  for (const [name, isOn] of Object.entries(on)) {
    desk.querySelector(`[data-toggle=${name}]`)?.setAttribute("aria-pressed", String(isOn));
  }
  desk.querySelector(".task")?.classList.toggle("as-written", on.written);
  clearDifferences();
  // Of two texts of which one is empty there is nothing to mark.
  const texts = [...desk.querySelectorAll(".response")].map(writtenIn).filter(Boolean);
  const found = on.diff && texts.length === 2 ? markDifferences(...texts) : undefined;
  const said = desk.querySelector("[data-found]");
  if (said) {
    said.hidden = !on.diff;
    said.textContent = on.diff ? foundInWords(found) : "";
  }
  return found;
}

function foundInWords(found) {
  if (found === null) return "This browser cannot mark differences.";
  return found ? differencesInWords(found) : "There is nothing to compare.";
}

const marksDifferences = () => Boolean(read(DIFF_ON)) && !isRanking(desk);
// Differences are those of the texts as written, so that is what they are marked in.
const showsWritten = () => Boolean(read(WRITTEN_ON)) || marksDifferences();
// A text that is shown as it was written stands alone in its box; the box itself ends with the line end of the page.
const writtenIn = (response) =>
  response.querySelector(".written") ?? response.querySelector(".prose > :only-child") ?? response.querySelector(".prose");

export function toggleDiff() {
  write(DIFF_ON, read(DIFF_ON) ? null : true);
  const found = showToggles();
  announce(read(DIFF_ON) ? foundInWords(found) : "Differences are not marked.");
}

export function toggleWritten() {
  const before = showsWritten();
  if (before) write(DIFF_ON, null);
  write(WRITTEN_ON, before ? null : true);
  showToggles();
  announce(before ? "The texts are formatted." : "The texts are shown as written.");
}

export function toggleSync() {
  write(SYNC_ON, read(SYNC_ON) ? null : true);
  showToggles();
  announce(read(SYNC_ON) ? "The responses scroll together." : "The responses scroll apart.");
}

document.addEventListener("click", (event) => {
  const toggle = event.target.closest("[data-toggle]")?.dataset.toggle;
  if (toggle === "diff") toggleDiff();
  if (toggle === "written") toggleWritten();
  if (toggle === "sync") toggleSync();
});

// Whoever keeps the rubric open while labeling finds it open on the next card.
document.addEventListener(
  "toggle",
  (event) => {
    if (event.target.id === "rubric") write(RUBRIC_OPEN, event.target.open ? true : null);
    else if (event.target.closest?.(".response")) showToggles();
  },
  true,
);

// How long what is on the screen has been in sight: time in a hidden tab does not count.

let shownFor = 0; // ms, before the last time the tab was hidden
let inSightSince = performance.now();

document.addEventListener("visibilitychange", () => {
  if (document.hidden) shownFor += performance.now() - inSightSince;
  else inSightSince = performance.now();
});

// In ms since the page was opened, or since the last `seenAnew`.
export function timeInSight() {
  return Math.round(shownFor + (document.hidden ? 0 : performance.now() - inSightSince));
}

export function seenAnew() {
  shownFor = 0;
  inSightSince = performance.now();
}

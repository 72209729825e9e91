import assert from "node:assert/strict";
import { test } from "node:test";

test("time in a hidden tab does not count, and a new card begins at zero", async () => {
  let now = 1000;
  let changed;
  globalThis.document = { hidden: false, addEventListener: (_, listener) => (changed = listener) };
  Object.defineProperty(globalThis, "performance", { value: { now: () => now }, configurable: true });
  const { seenAnew, timeInSight } = await import("../../static/js/sight.js");
  const pass = (ms) => (now += ms);
  const hide = (hidden) => {
    document.hidden = hidden;
    changed();
  };

  pass(300);
  assert.equal(timeInSight(), 300);
  hide(true);
  pass(5000);
  assert.equal(timeInSight(), 300);
  hide(false);
  pass(200.4);
  assert.equal(timeInSight(), 500);
  seenAnew();
  assert.equal(timeInSight(), 0);
  pass(50);
  assert.equal(timeInSight(), 50);
});

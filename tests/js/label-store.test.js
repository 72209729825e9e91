import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { freshStorage } from "./fakes.js";
import { forgetOld, read, write } from "../../static/js/label-store.js";

const DAY_MS = 24 * 3600 * 1000;

beforeEach(() => {
  freshStorage();
  write("a", null); // what an earlier test could not store
});

test("a value is read as it was written, and null removes it", () => {
  assert.equal(read("a"), null);
  write("a", { text: "ä", list: [1, 2] });
  assert.deepEqual(read("a"), { text: "ä", list: [1, 2] });
  write("a", null);
  assert.equal(read("a"), null);
  assert.deepEqual(Object.keys(localStorage), []);
});

test("a full storage keeps values as long as the page lives", () => {
  freshStorage(10);
  write("a", "longer than ten characters");
  assert.equal(localStorage.getItem("prefloop.label.a"), null);
  assert.equal(read("a"), "longer than ten characters");
  write("a", null);
  assert.equal(read("a"), null);
});

test("a value that fits again is stored, and no older one hides it", () => {
  freshStorage(10);
  write("a", "longer than ten characters");
  freshStorage();
  write("a", "new");
  assert.equal(read("a"), "new");
  assert.equal(JSON.parse(localStorage.getItem("prefloop.label.a")).value, "new");
});

test("a switched off storage costs nothing but the memory of closed pages", () => {
  Object.defineProperty(globalThis, "localStorage", {
    configurable: true,
    get() {
      throw new Error("SecurityError");
    },
  });
  try {
    write("a", 1);
    assert.equal(read("a"), 1);
    assert.equal(read("b"), null);
    forgetOld("draft.");
  } finally {
    Object.defineProperty(globalThis, "localStorage", { configurable: true, writable: true, value: null });
  }
});

test("damaged values read as none", () => {
  localStorage.setItem("prefloop.label.a", "{half a val");
  assert.equal(read("a"), null);
});

test("drafts older than a week are forgotten, of the kind asked for only", () => {
  const stored = (days) => JSON.stringify({ value: "x", at: Date.now() - days * DAY_MS });
  localStorage.setItem("prefloop.label.draft.old", stored(8));
  localStorage.setItem("prefloop.label.draft.new", stored(6));
  localStorage.setItem("prefloop.label.text.old", stored(8));
  localStorage.setItem("another.old", stored(8));
  forgetOld("draft.");
  assert.deepEqual(Object.keys(localStorage).sort(), ["another.old", "prefloop.label.draft.new", "prefloop.label.text.old"]);
});

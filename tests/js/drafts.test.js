import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { FakeArea, freshStorage, rootOf } from "./fakes.js";
import { forget, keep, tidy } from "../../static/js/drafts.js";

beforeEach(() => freshStorage());

test("what was typed is put back into the next page's field", () => {
  const first = new FakeArea("answer-1");
  assert.equal(keep(first), false);
  first.type("half a sen");
  const second = new FakeArea("answer-1");
  assert.equal(keep(second), true);
  assert.equal(second.value, "half a sen");
  const other = new FakeArea("answer-2");
  assert.equal(keep(other), false);
  assert.equal(other.value, "");
});

test("a field that is as the server sent it has no draft", () => {
  const area = new FakeArea("answer-1", "as it was");
  keep(area);
  area.type("changed");
  area.type("as it was");
  const again = new FakeArea("answer-1", "as it is now");
  assert.equal(keep(again), false);
  assert.equal(again.value, "as it is now");
});

test("a draft goes when it has been sent", () => {
  const area = new FakeArea("answer-1");
  keep(area);
  area.type("done");
  tidy(rootOf({ sent: "answer-1" }));
  assert.equal(keep(new FakeArea("answer-1")), false);
});

test("a draft begun since the other was sent stays", () => {
  const area = new FakeArea("attack");
  keep(area);
  area.type("the second one");
  tidy(rootOf({ sent: "attack", sentText: "the first one" }));
  assert.equal(keep(new FakeArea("attack")), true);
  tidy(rootOf({ sent: "attack", sentText: "the second one" }));
  assert.equal(keep(new FakeArea("attack")), false);
});

test("forgetting a name drops its draft", () => {
  const area = new FakeArea("answer-1");
  keep(area);
  area.type("x");
  forget("answer-1");
  assert.equal(keep(new FakeArea("answer-1")), false);
});

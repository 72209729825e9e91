import assert from "node:assert/strict";
import { beforeEach, mock, test } from "node:test";

import { freshStorage } from "./fakes.js";
import { Outbox } from "../../static/js/label-outbox.js";

const answer = (status, body = {}) => ({
  status,
  ok: status < 400,
  json: async () => body,
});
const brokenOff = { ...answer(200), json: () => Promise.reject(new TypeError("terminated")) };
const lost = () => {
  throw new TypeError("Failed to fetch");
};

// An outbox whose service says `answers` one after the other, a response or a function that throws.
function outboxOf(...answers) {
  const seen = { posted: [], taken: [], changed: [] };
  const outbox = new Outbox("outbox.7./projects/p/label", {
    async post(entry) {
      seen.posted.push(entry.id);
      const next = answers.shift();
      return typeof next === "function" ? next() : next;
    },
    async taken(entry, response) {
      seen.taken.push([entry.id, response.status]);
    },
    changed: (unsent, problem) => seen.changed.push([unsent, problem]),
  });
  return [outbox, seen];
}

// Lets promises that wait for nothing but each other go on.
async function settle() {
  for (let i = 0; i < 20; i++) await null;
}

beforeEach(() => freshStorage());

test("answers are sent one after the other, in the order given", async () => {
  const [outbox, seen] = outboxOf(answer(200), answer(200), answer(200));
  outbox.add({ id: "a", lease: "1" });
  outbox.add({ id: "b", lease: "2" });
  await outbox.add({ id: "c", lease: "3" });
  assert.deepEqual(seen.posted, ["a", "b", "c"]);
  assert.deepEqual(seen.taken, [["a", 200], ["b", 200], ["c", 200]]);
  assert.deepEqual(outbox.entries, []);
  assert.deepEqual(Object.keys(localStorage), []);
});

for (const [name, trouble] of [
  ["a lost connection", lost],
  ["a fault of the service", () => answer(503)],
  ["too many requests", () => answer(429)],
  ["an answer that breaks off", () => brokenOff],
]) {
  test(`after ${name} the answer waits and is tried again, later each time`, async () => {
    mock.timers.enable({ apis: ["setTimeout"] });
    try {
      const [outbox, seen] = outboxOf(trouble, trouble, answer(200));
      await outbox.add({ id: "a", lease: "1" });
      assert.deepEqual([seen.posted.length, outbox.has("1"), seen.changed.at(-1)], [1, true, [1, ""]]);
      mock.timers.tick(499);
      await settle();
      assert.equal(seen.posted.length, 1);
      mock.timers.tick(1);
      await settle();
      assert.equal(seen.posted.length, 2);
      mock.timers.tick(999);
      await settle();
      assert.equal(seen.posted.length, 2);
      mock.timers.tick(1);
      await settle();
      assert.deepEqual(seen.posted, ["a", "a", "a"]);
      assert.deepEqual(seen.taken, [["a", 200]]);
      assert.deepEqual(seen.changed.at(-1), [0, ""]);
    } finally {
      mock.timers.reset();
    }
  });
}

test("whoever is signed out keeps the answer for the next page", async () => {
  const [outbox, seen] = outboxOf(answer(401, { error: "Sign in first." }));
  await outbox.add({ id: "a", lease: "1" });
  assert.deepEqual(seen.changed.at(-1), [1, "Sign in first."]);
  assert.deepEqual(seen.taken, []);
  const [next, later] = outboxOf(answer(200));
  assert.ok(next.has("1"));
  await next.send();
  assert.deepEqual(later.posted, ["a"]);
});

test("a refused answer is handed back and does not stop the next", async () => {
  const [outbox, seen] = outboxOf(answer(422, { error: "No." }), answer(200));
  outbox.add({ id: "a", lease: "1" });
  await outbox.add({ id: "b", lease: "2" });
  assert.deepEqual(seen.taken, [["a", 422], ["b", 200]]);
});

test("an answer given in another tab is not sent twice", async () => {
  const [here, seen] = outboxOf(answer(200));
  const [there, seenThere] = outboxOf(lost);
  mock.timers.enable({ apis: ["setTimeout"] });
  try {
    await there.add({ id: "other", lease: "9" });
    await here.add({ id: "mine", lease: "1" });
    assert.deepEqual([seen.posted, seenThere.posted], [["mine"], ["other"]]);
    assert.deepEqual(here.entries, []);
    assert.deepEqual(there.entries.map((entry) => entry.id), ["other"]);
  } finally {
    mock.timers.reset();
  }
});

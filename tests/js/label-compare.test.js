import assert from "node:assert/strict";
import { test } from "node:test";

import { differences, differencesInWords, markGaps } from "../../static/js/label-compare.js";

// The length of a longest common subsequence, from the textbook's table.
function longestCommon(a, b) {
  const table = Array.from({ length: a.length + 1 }, () => new Array(b.length + 1).fill(0));
  for (let i = 1; i <= a.length; i++) {
    for (let j = 1; j <= b.length; j++) {
      table[i][j] = a[i - 1] === b[j - 1] ? table[i - 1][j - 1] + 1 : Math.max(table[i - 1][j], table[i][j - 1]);
    }
  }
  return table[a.length][b.length];
}

const words = (text) => text.split(" ").filter(Boolean);
const unmarked = (list, marks) => list.filter((_, i) => !marks[i]);

test("nothing is marked in equal texts, and all where nothing is shared", () => {
  assert.deepEqual(differences(words("a b c"), words("a b c")).map((marks) => [...marks]), [[0, 0, 0], [0, 0, 0]]);
  assert.deepEqual(differences(words("a b"), words("c")).map((marks) => [...marks]), [[1, 1], [1]]);
  assert.deepEqual(differences([], words("c")).map((marks) => [...marks]), [[], [1]]);
});

test("a replaced word is marked on both sides", () => {
  const [a, b] = [words("the cat sat down"), words("the dog sat down")];
  assert.deepEqual(differences(a, b).map((marks) => [...marks]), [[0, 1, 0, 0], [0, 1, 0, 0]]);
});

test("what is left unmarked is a longest common subsequence", () => {
  let state = 7; // a generator of its own, so that a failure comes back
  const draw = (below) => {
    state = (state * 69069 + 12345) % 2 ** 31;
    return Math.floor((state / 2 ** 31) * below);
  };
  for (let round = 0; round < 300; round++) {
    const [a, b] = [draw(14), draw(14)].map((length) => Array.from({ length }, () => "abcd"[draw(4)]));
    const [onlyA, onlyB] = differences(a, b);
    assert.deepEqual(unmarked(a, onlyA), unmarked(b, onlyB), `${a} | ${b}`);
    assert.equal(unmarked(a, onlyA).length, longestCommon(a, b), `${a} | ${b}`);
  }
});

test("beyond the bound a word is marked where the other text does not have it at all", () => {
  const a = Array.from({ length: 2000 }, (_, i) => `a${i}`);
  const b = Array.from({ length: 2000 }, (_, i) => `b${i}`);
  const [onlyA, onlyB] = differences(["x", ...a, "shared", "y"], ["z", "shared", ...b]);
  assert.equal(onlyA.at(-2), 0);
  assert.equal(onlyB[1], 0);
  assert.equal(onlyA.reduce((sum, mark) => sum + mark), 2002);
  assert.equal(onlyB.reduce((sum, mark) => sum + mark), 2001);
});

test("equal words with other spaces before them count as gaps", () => {
  const a = [{ word: "a", gap: "" }, { word: "b", gap: " " }, { word: "c", gap: " " }];
  const b = [{ word: "a", gap: "" }, { word: "b", gap: "\n" }, { word: "c", gap: " " }];
  const marks = differences(a.map(({ word }) => word), b.map(({ word }) => word));
  assert.equal(markGaps([a, b], marks), 1);
  assert.deepEqual(marks.map((side) => [...side]), [[0, 2, 0], [0, 2, 0]]);
});

test("a gap beside a changed word says nothing new", () => {
  const a = [{ word: "a", gap: "" }, { word: "b", gap: " " }];
  const b = [{ word: "x", gap: "" }, { word: "b", gap: "\n" }];
  const marks = differences(["a", "b"], ["x", "b"]);
  assert.equal(markGaps([a, b], marks), 0);
});

test("the differences are said in words", () => {
  const said = (values) => differencesInWords({ words: 0, gaps: 0, isFolded: false, isCut: false, ...values });
  assert.equal(said({}), "The texts are the same.");
  assert.equal(said({ words: 1 }), "1 word differs.");
  assert.equal(said({ words: 2, gaps: 1 }), "2 words differ. Spaces or line breaks differ in 1 place.");
  assert.equal(said({ isFolded: true }), "0 words differ. What is folded is not compared.");
  assert.equal(said({ words: 3, isCut: true }), "3 words differ. Only the beginning is compared.");
});

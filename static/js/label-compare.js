// Reading two long answers side by side: scrolling them together, and marking the words in which they differ.

// Beyond these the marks come from which words occur at all in the other text: a bound for texts of a megabyte.
const MOST_WORDS = 20_000;
const MOST_EDITS = 1_500;

// A letter of a script without spaces is a word of its own.
const WORD =
  /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}]|[\p{L}\p{N}\p{M}_]+|[^\s\p{L}\p{N}\p{M}_]/gu;

let leading = null;
let calm;

export function scrollTogether(panes, isOn) {
  for (const pane of panes) {
    pane.addEventListener("scroll", () => {
      if (!isOn() || (leading && leading !== pane)) return;
      leading = pane; // the others' own scroll events follow, and must not answer
      clearTimeout(calm);
      calm = setTimeout(() => (leading = null), 150);
      const share = pane.scrollTop / Math.max(1, pane.scrollHeight - pane.clientHeight);
      for (const other of panes) {
        if (other !== pane) other.scrollTop = share * (other.scrollHeight - other.clientHeight);
      }
    });
  }
}

// The words of an element with where they stand, and the text before each: what no word is, spaces and line ends.
function wordsOf(element) {
  const found = [];
  let gap = "";
  let last = null;
  const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT, {
    acceptNode: (node) =>
      node.parentElement.closest(".katex, .rest > summary, details:not([open]) > *")
        ? NodeFilter.FILTER_REJECT
        : NodeFilter.FILTER_ACCEPT,
  });
  for (let node = walker.nextNode(); node && found.length < MOST_WORDS; node = walker.nextNode()) {
    let at = 0;
    for (const match of node.data.matchAll(WORD)) {
      const to = match.index + match[0].length;
      found.push({ word: match[0], gap: gap + node.data.slice(at, match.index), node, begins: at, from: match.index, to });
      gap = "";
      at = to;
      if (found.length >= MOST_WORDS) return found;
    }
    gap += node.data.slice(at);
    // What ends the text is before a word that is none.
    last = { word: "", node, begins: at, from: node.data.length, to: node.data.length };
  }
  return last ? [...found, { ...last, gap }] : found;
}

// Marks words that are the same but have other spaces or line ends before them: 2 in both, where the words before are
// the same as well. Elsewhere the words themselves are marked.
export function markGaps([a, b], [onlyA, onlyB]) {
  let marked = 0;
  for (let i = 0, j = 0; i < a.length && j < b.length; ) {
    if (onlyA[i] === 1) i++;
    else if (onlyB[j] === 1) j++;
    else {
      if (a[i].word !== b[j].word) return marked; // too many differences to pair the words
      const isPair = i && j ? onlyA[i - 1] !== 1 && onlyB[j - 1] !== 1 : !i && !j;
      if (isPair && a[i].gap !== b[j].gap) {
        onlyA[i] = onlyB[j] = 2;
        marked++;
      }
      i++;
      j++;
    }
  }
  return marked;
}

// Which of the words of a and of b are not in a longest common subsequence of both (Myers 1986, O((N + M) D)); with more
// than MOST_EDITS differences, which do not occur in the other at all.
export function differences(a, b) {
  const onlyA = new Uint8Array(a.length).fill(1);
  const onlyB = new Uint8Array(b.length).fill(1);
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) onlyA[start] = onlyB[start++] = 0;
  let endA = a.length;
  let endB = b.length;
  while (endA > start && endB > start && a[endA - 1] === b[endB - 1]) onlyA[--endA] = onlyB[--endB] = 0;
  const n = endA - start;
  const m = endB - start;
  const most = Math.min(n + m, MOST_EDITS);
  const width = 2 * most + 3;
  const furthest = new Int32Array(width); // by diagonal k = x - y, shifted by most + 1
  const trace = [];
  for (let d = 0; d <= most; d++) {
    trace.push(furthest.slice(most + 1 - d - 1, most + 1 + d + 2));
    for (let k = -d; k <= d; k += 2) {
      const at = most + 1 + k;
      let x = k === -d || (k !== d && furthest[at - 1] < furthest[at + 1]) ? furthest[at + 1] : furthest[at - 1] + 1;
      let y = x - k;
      while (x < n && y < m && a[start + x] === b[start + y]) {
        x++;
        y++;
      }
      furthest[at] = x;
      if (x >= n && y >= m) {
        walkBack(trace, d, n, m, start, onlyA, onlyB);
        return [onlyA, onlyB];
      }
    }
  }
  const inA = new Set(a);
  const inB = new Set(b);
  for (let i = start; i < endA; i++) onlyA[i] = inB.has(a[i]) ? 0 : 1;
  for (let i = start; i < endB; i++) onlyB[i] = inA.has(b[i]) ? 0 : 1;
  return [onlyA, onlyB];
}

function walkBack(trace, edits, n, m, start, onlyA, onlyB) {
  let x = n;
  let y = m;
  for (let d = edits; d >= 0; d--) {
    const before = trace[d]; // diagonals -d - 1 to d + 1 as they were before step d
    const k = x - y;
    const at = (diagonal) => before[diagonal + d + 1];
    const down = k === -d || (k !== d && at(k - 1) < at(k + 1));
    const previous = down ? k + 1 : k - 1;
    const fromX = d === 0 ? 0 : at(previous);
    const fromY = d === 0 ? 0 : fromX - previous;
    while (x > fromX && y > fromY) {
      if (x - 1 < 0 || y - 1 < 0) break;
      x--;
      y--;
      onlyA[start + x] = onlyB[start + y] = 0;
    }
    x = fromX;
    y = fromY;
  }
}

// Marks where two elements differ, without touching them: a highlight lies over the text. Returns how many words and
// gaps between words are marked and whether that is of all the text, or null where the browser has no highlights.
export function markDifferences(first, second) {
  clearDifferences();
  if (!window.CSS?.highlights) return null;
  const sides = [wordsOf(first), wordsOf(second)];
  const marks = differences(...sides.map((side) => side.map((each) => each.word)));
  const gaps = markGaps(sides, marks);
  let words = 0;
  sides.forEach((side, number) => {
    const ranges = [];
    side.forEach((each, i) => {
      const isGap = marks[number][i] === 2;
      if (!marks[number][i] || (!isGap && !each.word)) return;
      words += isGap ? 0 : 1;
      const last = ranges.at(-1);
      if (!isGap && last && marks[number][i - 1] === 1 && last.endContainer === each.node) {
        last.setEnd(each.node, each.to);
        return;
      }
      const range = new Range();
      range.setStart(each.node, isGap ? each.begins : each.from);
      range.setEnd(each.node, isGap ? each.from : each.to);
      ranges.push(range);
    });
    CSS.highlights.set(number ? "only-second" : "only-first", new Highlight(...ranges));
  });
  const isFolded = [first, second].some((each) => each.querySelector(".rest:not([open])"));
  return { words, gaps, isFolded, isCut: sides.some((side) => side.length >= MOST_WORDS) };
}

export function differencesInWords({ words, gaps, isFolded, isCut }) {
  const isAll = !isFolded && !isCut;
  if (!words && !gaps && isAll) return "The texts are the same.";
  const counted = words === 1 ? "1 word differs." : `${words} words differ.`;
  const spaces = gaps ? ` Spaces or line breaks differ in ${gaps === 1 ? "1 place" : `${gaps} places`}.` : "";
  const left = isFolded ? " What is folded is not compared." : isCut ? " Only the beginning is compared." : "";
  return counted + spaces + left;
}

export function clearDifferences() {
  window.CSS?.highlights?.delete("only-first");
  window.CSS?.highlights?.delete("only-second");
}

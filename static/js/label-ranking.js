// Putting k responses in order. The ranks are the selects in the responses' heads; digits set them, and so does dragging
// the letters in the order shown below.

const selects = (desk) => [...desk.querySelectorAll("select[name=ranks]")];
const responseOf = (select) => select.closest(".response");
const letterOf = (select) => responseOf(select).dataset.response.toUpperCase();

export const isRanking = (desk) => Boolean(desk.querySelector(".task-ranking"));

function changed(select) {
  select.dispatchEvent(new Event("change", { bubbles: true }));
}

// The response in focus, else the first that has no rank yet.
function current(desk) {
  const all = selects(desk);
  const focused = document.activeElement?.closest?.(".response");
  return all.find((select) => responseOf(select) === focused) ?? all.find((select) => !select.value) ?? all[0];
}

const cannotJudge = (desk) => desk.querySelector(".extra input[name=preference]");

// Whoever cannot judge gives no ranks: those given stay in sight, but are not sent.
function lockRanks(desk) {
  for (const select of selects(desk)) select.disabled = Boolean(cannotJudge(desk)?.checked);
}

function unlockRanks(desk) {
  if (cannotJudge(desk)?.checked) cannotJudge(desk).click();
}

// Gives the response in focus a rank ("0": none) and goes on to the next that has none. Returns what to announce.
export function assignRank(desk, digit) {
  const all = selects(desk);
  if (Number(digit) > all.length) return "";
  unlockRanks(desk);
  const select = current(desk);
  select.value = digit === "0" ? "" : digit;
  changed(select);
  const from = all.indexOf(select);
  const next = [...all.slice(from + 1), ...all.slice(0, from)].find((other) => !other.value);
  const target = digit === "0" ? select : next ?? select;
  responseOf(target).focus();
  return `Response ${letterOf(select)} ${select.value ? `rank ${select.value}` : "not ranked"}.`;
}

export function focusResponse(desk, by) {
  const all = selects(desk);
  const focused = document.activeElement?.closest?.(".response");
  const at = all.findIndex((select) => responseOf(select) === focused);
  const to = at < 0 ? (by > 0 ? 0 : all.length - 1) : Math.max(0, Math.min(all.length - 1, at + by));
  responseOf(all[to]).focus();
}

export function isRanked(desk) {
  return selects(desk).some((select) => select.value);
}

// [[selects of the best], [of the next], ...], and those without a rank.
function groups(desk) {
  const ranked = new Map();
  const unranked = [];
  for (const select of selects(desk)) {
    if (!select.value) unranked.push(select);
    else ranked.set(Number(select.value), [...(ranked.get(Number(select.value)) ?? []), select]);
  }
  return [[...ranked.keys()].sort((a, b) => a - b).map((rank) => ranked.get(rank)), unranked];
}

// Puts one response elsewhere: `to` is {gap: n} (between), {group: n} (level with) or {none: true}.
function move(desk, select, to) {
  unlockRanks(desk);
  const [ranked, unranked] = groups(desk);
  const without = (list) => list.filter((other) => other !== select);
  const order = ranked.map(without);
  const rest = without(unranked);
  if (to.none) rest.push(select);
  else if (to.group !== undefined) order[to.group].push(select);
  else order.splice(to.gap, 0, [select]);
  for (const [i, group] of order.filter((group) => group.length).entries()) {
    for (const each of group) each.value = String(i + 1);
  }
  for (const each of rest) each.value = "";
  changed(select);
}

function chip(select) {
  const made = document.createElement("span");
  made.className = "chip";
  made.dataset.letter = letterOf(select);
  made.textContent = letterOf(select);
  return made;
}

function place(kind, attributes, children = []) {
  const made = document.createElement("span");
  made.className = kind;
  Object.assign(made.dataset, attributes);
  made.append(...children);
  return made;
}

function drawOrder(desk) {
  const strip = desk.querySelector("#order");
  const [ranked, unranked] = groups(desk);
  const parts = [place("order-end", {}, ["Best"]), place("order-gap", { gap: 0 })];
  ranked.forEach((group, i) => {
    parts.push(place("order-group", { group: i }, group.map(chip)), place("order-gap", { gap: i + 1 }));
  });
  const none = place("order-none", { none: "1" }, unranked.map(chip));
  parts.push(place("order-end", {}, ["Worst"]), place("order-end", {}, ["Not ranked:"]), none);
  strip.replaceChildren(...parts);
  for (const select of selects(desk)) responseOf(select).classList.toggle("is-best", select.value === "1");
}

function dragging(desk) {
  const strip = desk.querySelector("#order");
  const under = (event) =>
    document.elementFromPoint(event.clientX, event.clientY)?.closest("#order .order-gap, #order .order-group, #order .order-none");
  strip.addEventListener("pointerdown", (event) => {
    const dragged = event.target.closest(".chip");
    if (!dragged) return;
    event.preventDefault();
    strip.setPointerCapture(event.pointerId);
    dragged.classList.add("dragged");
    let over = null;
    const onMove = (moved) => {
      over?.classList.remove("over");
      dragged.style.translate = `${moved.clientX - event.clientX}px ${moved.clientY - event.clientY}px`;
      over = under(moved);
      over?.classList.add("over");
    };
    const onEnd = (ended) => {
      strip.removeEventListener("pointermove", onMove);
      strip.removeEventListener("pointerup", onEnd);
      strip.removeEventListener("pointercancel", onEnd);
      const target = ended.type === "pointerup" ? under(ended) : null;
      const select = selects(desk).find((each) => letterOf(each) === dragged.dataset.letter);
      if (!select) return; // the card went while it was dragged
      if (target?.dataset.none) move(desk, select, { none: true });
      else if (target?.dataset.group) move(desk, select, { group: Number(target.dataset.group) });
      else if (target?.dataset.gap) move(desk, select, { gap: Number(target.dataset.gap) });
      drawOrder(desk);
    };
    strip.addEventListener("pointermove", onMove);
    strip.addEventListener("pointerup", onEnd);
    strip.addEventListener("pointercancel", onEnd);
  });
}

// A card that comes back to the desk, after an undo, is prepared already.
export function prepareRanking(desk) {
  const strip = desk.querySelector("#order");
  if (!isRanking(desk)) return;
  lockRanks(desk);
  if (strip.hidden) {
    strip.hidden = false;
    for (const select of selects(desk)) select.addEventListener("change", () => drawOrder(desk));
    cannotJudge(desk)?.addEventListener("change", () => lockRanks(desk));
    dragging(desk);
  }
  drawOrder(desk);
}

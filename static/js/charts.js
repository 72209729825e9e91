// Live curves of a round. Colours are read from the page's CSS variables.

const POLL_MS = 2000;
const STEPS = [0, 1, 2, 3, 4, 5, 6].flatMap((power) => [1, 2, 5].map((n) => n * 10 ** power));

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function short(value) {
  return value === null || value === undefined ? "–" : Number(value.toPrecision(3)).toString();
}

/** A uPlot in `place` that fills its width and follows the colour scheme; `draw(x, columns)` shows data. */
class Plot {
  constructor(place, labels) {
    Object.assign(this, { place, labels, data: [[], ...labels.map(() => [])] });
    this.build();
    new ResizeObserver(() => this.resize()).observe(place);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.build());
  }

  get size() {
    return { width: Math.max(this.place.clientWidth, 200), height: 180 };
  }

  build() {
    this.plot?.destroy();
    const axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") } };
    const series = this.labels.map((label, i) => ({
      label,
      stroke: colour(`--series-${(i % 4) + 1}`),
      width: 2,
      spanGaps: true,
      points: { size: 6, show: true },
      value: (_, value) => short(value),
    }));
    this.plot = new uPlot(
      {
        ...this.size,
        scales: { x: { time: false } },
        axes: [{ ...axis, size: 32, incrs: STEPS },
          { ...axis, size: 52, values: (_, ticks) => ticks.map(short) }],
        series: [{ label: "step" }, ...series],
        cursor: { drag: { x: false, y: false } },
        hooks: { setCursor: [(plot) => this.showNewest(plot)], draw: [(plot) => this.drawEven(plot)] },
      },
      this.data,
      this.place,
    );
  }

  /** While nobody points at a step, the legend holds the newest values. */
  showNewest(plot) {
    const last = plot.data[0].length - 1;
    if (plot.cursor.idx === null && last >= 0) plot.setLegend({ idx: last }, false);
  }

  /** Of a share of two: chance, as a dashed line. */
  drawEven(plot) {
    if (!this.labels.every((label) => label.endsWith("accuracy"))) return;
    const y = plot.valToPos(0.5, "y", true);
    const { left, top, width, height } = plot.bbox;
    if (y < top || y > top + height) return;
    plot.ctx.save();
    plot.ctx.strokeStyle = colour("--muted");
    plot.ctx.setLineDash([4, 4]);
    plot.ctx.beginPath();
    plot.ctx.moveTo(left, y);
    plot.ctx.lineTo(left + width, y);
    plot.ctx.stroke();
    plot.ctx.restore();
  }

  resize() {
    if (this.plot.width !== this.size.width) this.plot.setSize(this.size);
  }

  draw(x, columns) {
    this.data = [x, ...columns];
    this.plot.setData(this.data);
    this.showNewest(this.plot);
  }
}

/** One figure of a round: the newest value of each metric and step, drawn and said in words. */
class Curves {
  constructor(place) {
    this.kind = place.dataset.kind;
    this.names = place.dataset.names.split(" ");
    this.labels = place.dataset.labels.split("|");
    this.summary = place.parentElement.querySelector(".chart-summary");
    this.plot = new Plot(place, this.labels);
    this.clear();
  }

  clear() {
    this.values = new Map(this.names.map((name) => [name, new Map()]));
  }

  add({ name, step, value }) {
    this.values.get(name)?.set(step, value);
  }

  draw() {
    const steps = [...new Set([...this.values.values()].flatMap((curve) => [...curve.keys()]))].sort((a, b) => a - b);
    this.plot.draw(steps, this.names.map((name) => steps.map((step) => this.values.get(name).get(step) ?? null)));
    const said = this.names.map((name, i) => this.describe(name, this.labels[i])).filter(Boolean);
    this.summary.replaceChildren(...(said.length ? said.flatMap((each, i) => (i ? ["; ", each] : [each])) : ["Nothing recorded yet."]));
    this.summary.parentElement.classList.toggle("empty", !said.length);
  }

  /** The newest and first value, under the label a person reads; the metric's own name is the tooltip. */
  describe(name, label) {
    const curve = [...this.values.get(name)].filter(([, value]) => value !== null).sort(([a], [b]) => a - b);
    if (!curve.length) return null;
    const [[, first], [step, last]] = [curve[0], curve.at(-1)];
    const said = document.createElement("span");
    said.title = name;
    said.textContent = curve.length > 1 ? `${label} ${short(last)} at step ${step}, from ${short(first)}` : `${label} ${short(last)}`;
    return said;
  }
}

/** Asks for what is new every two seconds until the round has ended; rests while the tab is hidden. */
class Watch {
  constructor(root) {
    this.root = root;
    this.figures = [...root.querySelectorAll(".plot")].map((place) => new Curves(place));
    this.cursor = "";
    this.attempts = new Map();
    this.misses = 0;
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) this.schedule(0); // also of a round that has ended: it may be retried in another tab
    });
    this.poll();
  }

  schedule(delay) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.poll(), delay);
  }

  async poll() {
    if (document.hidden && this.cursor) return;
    try {
      const answer = await fetch(`${this.root.dataset.metrics}?after=${this.cursor}`, { headers: { Accept: "application/json" } });
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      await this.show(await answer.json());
      this.misses = 0;
      this.say("no-answer", false);
    } catch {
      this.misses += 1; // what is shown stays, and the next call tries again
      this.say("no-answer", this.misses > 1);
    }
    if (!this.finished) this.schedule(POLL_MS);
  }

  say(id, so) {
    document.getElementById(id).hidden = !so;
  }

  async show(round) {
    this.say("no-worker", !round.worker && !round.finished);
    const again = round.stages.filter(({ stage, attempt }) => {
      const before = this.attempts.get(stage) ?? attempt;
      this.attempts.set(stage, attempt);
      return attempt !== before;
    });
    if (again.length) {
      // A run began anew: what its last attempt had recorded no longer counts. Read everything once more.
      for (const figure of this.figures) figure.clear();
      if (this.cursor) {
        this.cursor = "";
        return this.schedule(0);
      }
    }
    for (const metric of round.metrics) {
      for (const figure of this.figures) if (figure.kind === metric.kind) figure.add(metric);
    }
    this.cursor = round.cursor;
    for (const figure of this.figures) figure.draw();
    for (const stage of round.stages) this.showStage(stage);
    const log = document.getElementById("run-log");
    log.hidden = !round.log;
    log.querySelector("pre").textContent = round.log;
    const state = round.cancelling ? "cancelling" : round.state;
    if (state !== this.root.dataset.state) await this.moveOn(state);
    this.finished = round.finished;
  }

  showStage({ stage, state, done, total, note }) {
    const item = this.root.querySelector(`[data-stage="${stage}"]`);
    item.className = `stage stage-${state}`;
    item.toggleAttribute("aria-current", false);
    if (state === "running" || state === "queued") item.setAttribute("aria-current", "step");
    item.querySelector(".stage-state").textContent = state;
    const bar = item.querySelector("progress");
    bar.max = total || 1;
    bar.value = state === "succeeded" ? bar.max : done;
    item.querySelector(".stage-note").textContent = note;
  }

  /** A new stage, or the end, brings figures, tables, errors and buttons: the server has rendered them. */
  async moveOn(state) {
    const answer = await fetch(location.href);
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const id of ["round-head", "round-figures", "round-facts"]) {
      const part = document.adoptNode(fresh.getElementById(id));
      const old = document.getElementById(id);
      keepOpen(old, part);
      old.replaceWith(part);
      part.dispatchEvent(new CustomEvent("htmx:load", { bubbles: true })); // as any swap: times become local
    }
    this.root.dataset.state = state;
  }
}

/** What a person has unfolded stays so: a question whether to cancel must not close under their hand. */
function keepOpen(old, part) {
  const name = (details) => details.querySelector("summary")?.textContent.trim();
  const open = new Set([...old.querySelectorAll("details[open]")].map(name));
  for (const details of part.querySelectorAll("details")) details.open ||= open.has(name(details));
}

const round = document.getElementById("round");
if (round) new Watch(round);

// The agreement page: the trend by week, in the colours of the page's CSS variables, and focus that stays where it was.

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function short(value) {
  return value === null || value === undefined ? "–" : value.toFixed(2);
}

/** A uPlot in `place` that fills its width and follows the colour scheme. */
function draw(place) {
  const { week, alpha, low, high, percent } = JSON.parse(place.dataset.columns);
  const size = () => ({ width: Math.max(place.clientWidth, 200), height: 200 });
  let plot;

  function build() {
    plot?.destroy();
    const axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") } };
    const line = (label, stroke, more) => ({ label, stroke, width: 2, spanGaps: true, value: (_, value) => short(value), ...more });
    const bound = { width: 0, points: { show: false }, class: "bound" };
    const withEnds = (_, value, __, at) =>
      value === null || low[at] === null ? short(value) : `${short(value)} (${short(low[at])} to ${short(high[at])})`;
    plot = new uPlot(
      {
        ...size(),
        axes: [axis, { ...axis, size: 48, values: (_, ticks) => ticks.map(short) }],
        series: [
          { label: "Week from", value: (_, at) => (at === null ? "–" : new Date(at * 1000).toISOString().slice(0, 10)) },
          line("Alpha, sides", colour("--series-1"), { value: withEnds }),
          line("low", "transparent", bound),
          line("high", "transparent", bound),
          line("Agree", colour("--series-2")),
        ],
        bands: [{ series: [3, 2], fill: `${colour("--series-1")}2e` }],
        cursor: { drag: { x: false, y: false } },
      },
      [week, alpha, low, high, percent],
      place,
    );
  }

  build();
  new ResizeObserver(() => {
    if (plot.width !== size().width) plot.setSize(size());
  }).observe(place);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", build);
}

function drawIn(root) {
  for (const place of root.querySelectorAll(".trend:not([data-drawn])")) {
    place.dataset.drawn = "";
    draw(place);
  }
}

document.addEventListener("htmx:load", (event) => drawIn(event.target));
// htmx gives the focus back to a link of the same id; on the last page that link is gone.
document.addEventListener("htmx:afterSettle", (event) => {
  const part = document.getElementById(event.detail.target?.id);
  if (document.activeElement === document.body && part?.matches(".part")) part.querySelector("h2").focus();
});
drawIn(document);

"""Charts as SVG for pages and as files to download, with their numbers as CSV.

On pages, app.css sets colors and type by the marks' classes, so a chart follows the color scheme. A file has no
stylesheet, so each mark carries its light colors itself.
"""

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

from markupsafe import Markup, escape

from app.domain.smoothing import LEAST_TO_SMOOTH, moving_average

WIDTH, LEFT, RIGHT = 640, 64, 20
ROW = 20  # height of a line of text
TITLE, AXIS = 24, 48
ROOM = 6  # space above and below, so that a dot at the edge is not cut off
MOST_TICKS = 6
LETTER = 10.5  # maximum width of a letter: on phones, app.css makes the text larger
COLOURS = 4  # number of series that app.css has colors for

# Styles of these classes in app.css, in light colors, for files.
_STYLES: dict[str, dict[str, str]] = {
    "title": {"fill": "#1b1f27", "font-weight": "600"},
    "word": {"fill": "#59616f"},
    "grid": {"stroke": "#d8dce4", "fill": "none"},
    "even": {"stroke": "#59616f", "stroke-dasharray": "4 4", "fill": "none"},
    "paper": {"fill": "#ffffff"},
    **{
        f"{kind} series-{n + 1}": style
        for n, colour in enumerate(("#2b5ba3", "#a34a08", "#1d7a55", "#8a3f9c"))
        for kind, style in (
            ("line", {"stroke": colour, "stroke-width": "2", "fill": "none"}),
            ("raw", {"stroke": colour, "stroke-width": "1", "stroke-opacity": "0.35", "fill": "none"}),
            ("reach", {"stroke": colour, "stroke-width": "2", "stroke-opacity": "0.6", "fill": "none"}),
            ("band", {"fill": colour, "fill-opacity": "0.18", "stroke": "none"}),
            ("dot", {"fill": colour}),
        )
    },
    "cell cell-none": {"fill": "#eef0f4"},
    "cell cell-even": {"fill": "#eef0f4"},
    "cell cell-up": {"fill": "#e0f2e7"},
    "cell cell-down": {"fill": "#fbe4e6"},
    "cell cell-up-sure": {"fill": "#9ed8b4"},
    "cell cell-down-sure": {"fill": "#f2a9b0"},
}


class Series(NamedTuple):
    """Points of one kind.

    Attributes:
        points: (x, y), in the order in which a line joins them.
        reach: the interval (low, high) of each point, or None; drawn as a band if joined, else as bars.
        joined: whether a line joins the points.
        names: texts beside the points; empty ones are not drawn.
        smooth: whether to draw the moving average of many points, with the points' own line faint behind it.
    """

    label: str
    points: Sequence[tuple[float, float]]
    reach: Sequence[tuple[float, float] | None] = ()
    joined: bool = True
    names: Sequence[str] = ()
    smooth: bool = False


class Panel(NamedTuple):
    """One figure above the chart's x axis.

    Attributes:
        unit: of y: a plain number, or a share from 0 to 1, written as percent.
        even: the y of a dashed line that separates the two sides.
        diagonal: whether to draw a dashed line at y = x.
    """

    title: str
    series: Sequence[Series]
    unit: Literal["number", "share"] = "number"
    even: float | None = None
    y_range: tuple[float, float] | None = None
    diagonal: bool = False


class Chart(NamedTuple):
    """Panels below each other with one x axis. `whole`: x is a count, so its ticks are whole numbers."""

    title: str
    x_label: str
    panels: Sequence[Panel]
    whole: bool = False
    x_unit: Literal["number", "share"] = "number"
    x_range: tuple[float, float] | None = None
    height: int = 150  # of a panel


# ---- scales ----------------------------------------------------------------------------------------------------------


def ticks(low: float, high: float, most: int = MOST_TICKS, whole: bool = False) -> list[float]:
    """Return at most `most` round numbers from low to high, with a step of 1, 2 or 5 times a power of ten."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low] if math.isfinite(low) else []
    power = 10.0 ** math.floor(math.log10(span / most))
    steps = [power * factor for factor in (1, 2, 5, 10, 20)]
    if whole:
        steps = [step for step in steps if step >= 1] or [1.0]
    for step in steps:
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            return [n * step for n in range(first, last + 1)]
    return []


def reach(values: Iterable[float], even: float | None = None) -> tuple[float, float]:
    """Return the smallest interval with all values and `even`, plus a twentieth on each side."""
    known = [value for value in values if math.isfinite(value)] + ([] if even is None else [even])
    if not known:
        return 0.0, 1.0
    low, high = min(known), max(known)
    room = (high - low) / 20 or max(abs(high), 1.0) / 10
    return low - room, high + room


def said(value: float, unit: Literal["number", "share"]) -> str:
    """Return a value as text for people, with a true minus sign."""
    text = f"{value * 100:.3g}%" if unit == "share" else f"{value:.3g}"
    return text.replace("-", "−")


# ---- drawing ---------------------------------------------------------------------------------------------------------


class _Pen:
    """Writes marks; with `standalone` each carries its own colors."""

    def __init__(self, standalone: bool) -> None:
        self.standalone, self.marks = standalone, [Markup("")]

    def mark(self, tag: str, css: str, text: str = "", tip: str = "", **attributes: Any) -> None:
        given = {name.replace("_", "-"): _short(value) for name, value in attributes.items()}
        if self.standalone:
            given |= _STYLES.get(css, {})
        written = Markup("").join(Markup(' {}="{}"').format(name, value) for name, value in given.items())
        inside = Markup("<title>{}</title>").format(_plain(tip)) if tip else escape(_plain(text))
        self.marks.append(Markup('<{0} class="{1}"{2}>{3}</{0}>').format(Markup(tag), css, written, inside))

    def line(self, css: str, x1: float, y1: float, x2: float, y2: float) -> None:
        self.mark("line", css, x1=x1, y1=y1, x2=x2, y2=y2)

    def text(self, css: str, x: float, y: float, text: str, anchor: str = "start") -> None:
        self.mark("text", css, text, x=x, y=y, text_anchor=anchor)

    def page(self, title: str, width: float, height: float) -> Markup:
        opening = Markup('<svg class="drawing" viewBox="0 0 {} {}" role="img" aria-label="{}"').format(
            _short(width), _short(height), _plain(title)
        )
        if self.standalone:
            opening += Markup(' xmlns="http://www.w3.org/2000/svg" width="{}" height="{}"').format(
                _short(width), _short(height)
            )
            opening += Markup(' font-family="system-ui, sans-serif" font-size="12"')
        return opening + Markup(">") + Markup("").join(self.marks) + Markup("</svg>")


# What XML cannot hold, not even escaped (a file with one opens nowhere), and what turns the text around it.
_UNFIT = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]|[\u202a-\u202e\u2066-\u2069]")


def _plain(text: str) -> str:
    return _UNFIT.sub("\ufffd", text)


def _short(value: Any) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)


def svg(chart: Chart, standalone: bool = False) -> Markup:
    """Return the chart as an <svg> element; with `standalone` as a file, with a title and a white background."""
    pen = _Pen(standalone)
    top = ROW + 8 if standalone else 4
    legends = [ROW if len(_drawn(panel)) > 1 else 0 for panel in chart.panels]
    height = top + sum(TITLE + legend + chart.height for legend in legends) + AXIS
    if standalone:
        pen.mark("rect", "paper", width=WIDTH, height=height)
        pen.text("title", LEFT, ROW, chart.title)
    x_low, x_high = chart.x_range or _x_range(chart)
    across = [x for x in ticks(x_low, x_high, 8, chart.whole) if not chart.whole or x >= 1]

    def place(x: float) -> float:
        return LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    for panel, legend in zip(chart.panels, legends, strict=True):
        pen.text("title", LEFT, top + 16, panel.title)
        if legend:
            _legend(pen, panel, top + TITLE)
        top += TITLE + legend
        _panel(pen, panel, place, (x_low, x_high), across, top, chart.height)
        top += chart.height
    for x in across:
        pen.text("word", place(x), top + 18, said(x, chart.x_unit), "middle")
    pen.text("word", (LEFT + WIDTH - RIGHT) / 2, top + 40, chart.x_label, "middle")
    return pen.page(chart.title, WIDTH, height)


def _x_range(chart: Chart) -> tuple[float, float]:
    xs = [x for panel in chart.panels for each in panel.series for x, _ in each.points]
    if not chart.whole:
        return reach(xs)
    return (min(xs) - 0.5, max(xs) + 0.5) if xs else (0.5, 1.5)  # a single round is in the middle


def _drawn(panel: Panel) -> list[tuple[int, Series]]:
    """Return the series that have points, each with its place, which decides its color."""
    return [(n, each) for n, each in enumerate(panel.series) if each.points]


def _legend(pen: _Pen, panel: Panel, y: float) -> None:
    x = float(LEFT)
    for n, each in _drawn(panel):
        pen.mark("circle", f"dot {_colour(n)}", cx=x + 6, cy=y + 6, r=5)
        pen.text("word", x + 16, y + 10, each.label)
        x += 30 + LETTER * len(each.label)


def _colour(n: int) -> str:
    return f"series-{n % COLOURS + 1}"


def _panel(
    pen: _Pen,
    panel: Panel,
    place: Callable[[float], float],
    sides: tuple[float, float],
    across: Sequence[float],
    top: float,
    height: float,
) -> None:
    """Draw a panel.

    Args:
        place: returns the horizontal position of an x.
        sides: the smallest and the largest x.
        across: the ticks of x.
        top: the vertical position of the panel's top.
    """
    values = [y for each in panel.series for _, y in each.points]
    values += [end for each in panel.series for ends in each.reach if ends for end in ends]
    low, high = panel.y_range or reach(values, panel.even)

    def level(y: float) -> float:
        return top + height - ROOM - (y - low) / (high - low) * (height - 2 * ROOM)

    for y in ticks(low, high, 5):
        pen.line("grid", LEFT, level(y), WIDTH - RIGHT, level(y))
        pen.text("word", LEFT - 8, level(y) + 4, said(y, panel.unit), "end")
    for x in across:
        pen.line("grid", place(x), top + height - 4, place(x), top + height)
    if panel.even is not None and low <= panel.even <= high:
        pen.line("even", LEFT, level(panel.even), WIDTH - RIGHT, level(panel.even))
    if panel.diagonal:
        first, last = max(low, sides[0]), min(high, sides[1])
        pen.line("even", place(first), level(first), place(last), level(last))
    for n, each in _drawn(panel):
        _series(pen, each, _colour(n), place, level, panel)


def _series(
    pen: _Pen,
    series: Series,
    colour: str,
    place: Callable[[float], float],
    level: Callable[[float], float],
    panel: Panel,
) -> None:
    ends = series.reach or [None] * len(series.points)
    known = [(place(x), reach_) for (x, _), reach_ in zip(series.points, ends, strict=True) if reach_]
    if series.joined and len(known) > 1:
        there = [f"{x:.1f},{level(high):.1f}" for x, (_, high) in known]
        back = [f"{x:.1f},{level(low):.1f}" for x, (low, _) in reversed(known)]
        pen.mark("polygon", f"band {colour}", points=" ".join(there + back))
    else:
        for x, (low, high) in known:
            pen.line(f"reach {colour}", x, level(low), x, level(high))

    def join(css: str, ys: Iterable[float]) -> None:
        line = " ".join(f"{place(x):.1f},{level(y):.1f}" for (x, _), y in zip(series.points, ys, strict=True))
        pen.mark("polyline", f"{css} {colour}", points=line)

    raw = [y for _, y in series.points]
    if series.smooth and len(raw) >= LEAST_TO_SMOOTH:
        join("raw", raw)
        join("line", moving_average(raw))
        return  # dots would hide the average
    if series.joined and len(raw) > 1:
        join("line", raw)
    names = series.names or [""] * len(series.points)
    small = len(series.points) > 60
    for (x, y), reach_, name in zip(series.points, ends, names, strict=True):
        tip = f"{series.label}{f' {name}' if name else ''}: {said(y, panel.unit)}"
        if reach_:
            tip += f" ({said(reach_[0], panel.unit)} to {said(reach_[1], panel.unit)})"
        pen.mark("circle", f"dot {colour}", tip=tip, cx=place(x), cy=level(y), r=2 if small else 4)
        if name:
            at_the_end = place(x) > WIDTH - RIGHT - 60
            pen.text("word", place(x) + (-8 if at_the_end else 8), level(y) - 6, name, "end" if at_the_end else "start")


# ---- numbers ---------------------------------------------------------------------------------------------------------


def chart_csv(chart: Chart) -> str:
    """Return a CSV row for each point: its figure and series, x, y, and its interval."""
    rows = []
    for panel in chart.panels:
        for series in panel.series:
            ends = series.reach or [None] * len(series.points)
            for (x, y), reach_ in zip(series.points, ends, strict=True):
                rows.append([panel.title, series.label, x, y, *(reach_ or (None, None))])
    return as_csv(["figure", "series", chart.x_label, "value", "low", "high"], rows)


def as_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a CSV table with numbers in full, and without text that a spreadsheet would treat as a formula."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow([_cell(column) for column in columns])
    writer.writerows([_cell(value) for value in row] for row in rows)
    return out.getvalue()


# Spreadsheets of some languages take the wide signs too.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def _cell(value: Any) -> Any:
    is_formula = isinstance(value, str) and value[:1] in _FORMULA
    return f"'{value}" if is_formula else value


# ---- heat maps -------------------------------------------------------------------------------------------------------


class HeatCell(NamedTuple):
    """A cell: its value as text, a note below it, and a mood: none, even, up, down, up-sure or down-sure."""

    text: str
    note: str = ""
    mood: str = "none"


class HeatMap(NamedTuple):
    """Named rows with one cell per column."""

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[HeatCell]]]


NAME_WIDTH, CELL_WIDTH, CELL_HEIGHT = 200, 72, 36
LONGEST_NAME = 28


def heat_svg(heat: HeatMap) -> Markup:
    """Return the heat map as a standalone file; on pages it is a table."""
    pen = _Pen(standalone=True)
    width = max(NAME_WIDTH + CELL_WIDTH * len(heat.columns) + RIGHT, WIDTH)
    height = 2 * ROW + 16 + CELL_HEIGHT * len(heat.rows) + 8
    pen.mark("rect", "paper", width=width, height=height)
    pen.text("title", 12, ROW, heat.title)
    for n, column in enumerate(heat.columns):
        pen.text("word", NAME_WIDTH + CELL_WIDTH * (n + 0.5), 2 * ROW + 8, column, "middle")
    for m, (name, cells) in enumerate(heat.rows):
        y = 2 * ROW + 16 + CELL_HEIGHT * m
        shown = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
        pen.text("title", 12, y + 22, shown)
        for n, cell in enumerate(cells):
            x = NAME_WIDTH + CELL_WIDTH * n
            pen.mark("rect", f"cell cell-{cell.mood}", x=x + 1, y=y + 1, width=CELL_WIDTH - 2, height=CELL_HEIGHT - 2)
            pen.text("title", x + CELL_WIDTH / 2, y + (16 if cell.note else 22), cell.text, "middle")
            if cell.note:
                pen.text("word", x + CELL_WIDTH / 2, y + 30, cell.note, "middle")
    return pen.page(heat.title, width, height)

"""Charts: scales and positions by arithmetic, standalone files, and numbers that spreadsheets accept."""

import csv
import io
import xml.etree.ElementTree as ET

import pytest

from app.charts import (
    LEFT,
    RIGHT,
    ROOM,
    WIDTH,
    Chart,
    HeatCell,
    HeatMap,
    Panel,
    Series,
    as_csv,
    chart_csv,
    heat_svg,
    reach,
    svg,
    ticks,
)

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
    ("low", "high", "most", "whole", "expected"),
    [
        (0, 1, 6, False, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.07, 0.42, 5, False, [0.1, 0.2, 0.3, 0.4]),
        (-3, 7, 6, False, [-2, 0, 2, 4, 6]),
        (0.5, 3.5, 8, True, [1, 2, 3]),
        (0.5, 90.5, 8, True, [20, 40, 60, 80]),
        (2, 2, 6, False, [2]),
        (0, float("inf"), 6, False, [0]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, most: int, whole: bool, expected: list[float]) -> None:
    assert ticks(low, high, most, whole) == pytest.approx(expected)


def test_reach_holds_all_values_with_room() -> None:
    assert reach([1.0, 3.0]) == pytest.approx((0.9, 3.1))
    assert reach([1.0, 3.0], even=0.0) == pytest.approx((-0.15, 3.15))
    assert reach([2.0]) == pytest.approx((1.8, 2.2))
    assert reach([float("nan")]) == (0.0, 1.0)


def drawn(chart: Chart) -> ET.Element:
    return ET.fromstring(str(svg(chart, standalone=True)))


def test_points_stand_where_their_values_are() -> None:
    series = Series("win <rate>", [(1.0, 0.25), (3.0, 0.75)], [(0.0, 0.5), None], joined=False, names=["a & b", ""])
    chart = Chart("T", "round", [Panel("P", [series], "share", 0.5, (0.0, 1.0))], x_range=(0.0, 4.0), height=112)
    root = drawn(chart)
    dots = root.findall(f".//{SVG}circle")
    xs, ys = ([float(dot.attrib[name]) for dot in dots] for name in ("cx", "cy"))
    inner = WIDTH - LEFT - RIGHT
    assert xs == pytest.approx([LEFT + inner / 4, LEFT + inner * 3 / 4], abs=0.06)
    assert ys[0] - ys[1] == pytest.approx((112 - 2 * ROOM) / 2, abs=0.11)  # half of the axis
    bar = next(line for line in root.findall(f".//{SVG}line") if "reach" in line.attrib["class"])
    assert float(bar.attrib["y1"]) - float(bar.attrib["y2"]) == pytest.approx((112 - 2 * ROOM) / 2, abs=0.11)
    tip = dots[0].find(f"{SVG}title")
    assert tip is not None
    assert tip.text == "win <rate> a & b: 25% (0% to 50%)"
    assert "a & b" in [text.text for text in root.findall(f".//{SVG}text")]


def test_a_file_brings_its_colours_and_a_page_has_its_own() -> None:
    chart = Chart("T", "x", [Panel("P", [Series("s", [(0.0, 1.0), (1.0, 2.0)], [(0.5, 1.5), (1.5, 2.5)])])])
    alone, inside = str(svg(chart, standalone=True)), str(svg(chart))
    assert 'stroke="#2b5ba3"' in alone
    assert "#" not in inside
    assert 'class="line series-1"' in inside
    root = drawn(chart)
    assert len(root.findall(f".//{SVG}polygon")) == len(root.findall(f".//{SVG}polyline")) == 1


@pytest.mark.parametrize("series", [[], [Series("s", [])], [Series("s", [(1.0, 5.0)])]])
def test_a_chart_of_nothing_or_one_point_is_drawn(series: list[Series]) -> None:
    chart = Chart("T", "round", [Panel("P", series)], whole=True)
    assert len(drawn(chart).findall(f".//{SVG}circle")) == sum(len(each.points) for each in series)


def test_a_long_curve_is_averaged_and_its_numbers_stay_raw() -> None:
    """Of 19 ones and a 0, the average ends below 1 by 0.1 / (1 - 0.9^20); a shorter curve stays as it is."""
    long = Series("long", [(float(x), 1.0 if x < 19 else 0.0) for x in range(20)], smooth=True)
    short = Series("short", [(float(x), 1.0) for x in range(19)], smooth=True)
    chart = Chart("T", "x", [Panel("P", [long, short, Series("nothing", [])], y_range=(0.0, 1.0))], height=112)
    root = drawn(chart)
    lines = {each.attrib["class"]: each.attrib["points"].split()[-1] for each in root.findall(f".//{SVG}polyline")}
    assert lines.keys() == {"raw series-1", "line series-1", "line series-2"}
    top, raw, average = (
        float(lines[name].split(",")[1]) for name in ("line series-2", "raw series-1", "line series-1")
    )
    assert raw - top == pytest.approx(100, abs=0.11)
    assert average - top == pytest.approx(100 * 0.1 / (1 - 0.9**20), abs=0.11)
    assert [row[3] for row in csv.reader(io.StringIO(chart_csv(chart)))][1:21] == ["1.0"] * 19 + ["0.0"]
    labels = [text.text for text in root.findall(f".//{SVG}text")]
    assert "long" in labels
    assert "nothing" not in labels  # no row of the legend without a line


def test_numbers_are_in_full_and_no_text_is_a_formula() -> None:
    chart = Chart("T", "x", [Panel("P", [Series("=1+1", [(1.0, 1 / 3)], [(0.25, 0.5)]), Series("s", [(2.0, -1.0)])])])
    assert list(csv.reader(io.StringIO(chart_csv(chart)))) == [
        ["figure", "series", "x", "value", "low", "high"],
        ["P", "'=1+1", "1.0", str(1 / 3), "0.25", "0.5"],
        ["P", "s", "2.0", "-1.0", "", ""],
    ]
    assert as_csv(["a"], [["@x"], [-5]]).splitlines() == ["a", "'@x", "-5"]


def test_a_heat_map_has_a_square_for_each_cell() -> None:
    rows = [
        ("domain: <x>", [HeatCell("62%", "24", "up-sure"), HeatCell("too few", "1")]),
        ("y" * 60, [HeatCell("")] * 2),
    ]
    root = ET.fromstring(str(heat_svg(HeatMap("T", ["Round 1", "Round 2"], rows))))
    cells = [each.attrib["class"] for each in root.findall(f".//{SVG}rect") if "cell" in each.attrib["class"]]
    assert cells == ["cell cell-up-sure", "cell cell-none", "cell cell-none", "cell cell-none"]
    texts = [text.text for text in root.findall(f".//{SVG}text")]
    assert {"domain: <x>", "62%", "24", "too few"} <= {*texts}
    assert max(len(text or "") for text in texts) == 28


def test_hostile_names_leave_files_that_open() -> None:
    """People who import prompts choose the names of slices."""
    name = "a\x01b\x1b\ufffe\u202e<script>&"
    heat = heat_svg(HeatMap(name, [name], [(name, [HeatCell(name, name)])]))
    chart = svg(Chart(name, name, [Panel(name, [Series(name, [(1.0, 2.0)], names=[name])])]), standalone=True)
    for drawn in (heat, chart):
        said = {each.text for each in ET.fromstring(str(drawn)).iter(f"{SVG}text")}
        assert "a\ufffdb\ufffd\ufffd\ufffd<script>&" in said
    assert as_csv(["\n=1", "\uff1d1", "1"], []) == "\"'\n=1\",'\uff1d1,1\r\n"

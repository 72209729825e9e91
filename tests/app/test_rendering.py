"""The cost of hostile texts: work counted in calls, memory in bytes, and processes that can be killed."""

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from app import rendering
from app.markup import HIGHLIGHT_LIMIT, LANGUAGES, html_of
from app.render import templates
from app.render_processes import MOST_HTML, MOST_WAITING, Busy, RenderProcesses
from app.rendering import FEW_BRACKETS, MARKDOWN_LIMIT, SHORT, Rendered, is_cheap, markdown, one_page

UNITS = (
    "*",
    "**a",
    "a**",
    "*a **b ",
    "~~a",
    "~",
    "> ",
    "> - ",
    "- ",
    "- a\n",
    "1. a\n",
    "1) - ",
    "  - a\n",
    "\t- ",
    "    a\n",
    "`",
    "`` ` ",
    "`a",
    "<",
    "<a@b>",
    "<http://a",
    "&",
    "#",
    "\\",
    "\\\n",
    "\\(",
    "$a",
    "$$a ",
    "a\n$$\n",
    "$x $",
    "$1 a",
    "_a__b",
    "(",
    "](",
    "!",
    "a\n",
    "a\n\n",
    "\n",
    " \n",
    "'''\n",
    "a: b\n",
    "\u200d",
    "x\u0301",
    "*文*",
    "*_~`",
    "~~*a*~~",
)
BRACKETS = ("[", "![", "[]", "[a](b ", "[[a](http://b)](", "[](", "\\[\n", "[a](<", "[a](http://b", "[a]: b\n")
# Calls of Python functions per character, for any text; 20 to 60 are usual.
MOST_CALLS = 200


def calls(text: str) -> int:
    """Return how many functions are called to render a text."""
    counted = 0

    def count(_frame: Any, _event: str, _argument: Any) -> None:
        nonlocal counted
        counted += 1

    sys.setprofile(count)
    try:
        html_of(text)
    finally:
        sys.setprofile(None)
    return counted


def hostile(size: int) -> Iterator[str]:
    """Yield texts of a given size that are rendered within the service."""
    luck = random.Random(3)
    yield from ((unit * size)[:size] for unit in UNITS)
    for unit in BRACKETS:
        yield (unit * (FEW_BRACKETS // unit.count("["))).ljust(size, "a")
        yield ("a" * (size - 400) + unit * (FEW_BRACKETS // unit.count("[")))[:size]
    yield "\n".join("  " * depth + "- a" for depth in range(size))[:size]
    yield "".join(luck.choices(UNITS, k=size))[:size]


def test_what_is_rendered_within_the_service_costs_what_its_length_says() -> None:
    html_of("a")  # run one-time initialisation
    pairs = [pair for pair in zip(hostile(500), hostile(1_000), strict=True) if is_cheap(pair[1])]
    assert len(pairs) > 50
    for short, long in pairs:
        few, many = calls(short), calls(long)
        assert many <= MOST_CALLS * len(long), long[:40]
        assert many <= 2.5 * few + 5_000, long[:40]
        assert len(html_of(long) or "") <= 40 * len(long), long[:40]


@pytest.mark.parametrize(
    "text", ["a" * (SHORT + 1), "[" * (FEW_BRACKETS + 1), "|a|\n|-|\n" * 9, "```xml\n<!--\n```", "~~~\na"]
)
def test_what_may_cost_more_is_rendered_elsewhere(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Elsewhere:
        def html_of(self, text: str, seconds: float) -> str | None:
            asked.append(text)
            return "<p>drawn</p>"

    monkeypatch.setattr(rendering, "processes", Elsewhere())
    monkeypatch.setattr(rendering, "_rendered", Rendered())
    assert not is_cheap(text)
    assert [markdown(text), markdown(text)] == ["<p>drawn</p>"] * 2
    assert asked == [text]  # and cached


# ---- processes -------------------------------------------------------------------------------------------------------


@pytest.fixture
def pool() -> Iterator[RenderProcesses]:
    """A pool of one process, which may spend a twentieth of a second on a text."""
    pool = RenderProcesses(1, cpu_seconds=0.05)
    yield pool
    pool.close()


def child_of(pool: RenderProcesses) -> int:
    process = pool._free.get_nowait()
    assert process is not None
    pool._free.put(process)
    return process._child.pid


def test_a_text_that_takes_too_much_work_ends_its_process_and_no_other_text(pool: RenderProcesses) -> None:
    assert pool.html_of("*a*", 60) == '<p dir="auto"><em>a</em></p>\n'
    first = child_of(pool)
    assert pool.html_of("[" * MARKDOWN_LIMIT, 60) is None  # twenty million calls
    assert pool.html_of("*b*", 60) == '<p dir="auto"><em>b</em></p>\n'
    assert child_of(pool) != first
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


def test_a_process_that_does_not_answer_is_ended_and_the_text_is_shown_as_it_is(
    pool: RenderProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.html_of("", 60)
    os.kill(child_of(pool), signal.SIGSTOP)
    kept = Rendered()
    monkeypatch.setattr(rendering, "processes", pool)
    monkeypatch.setattr(rendering, "_rendered", kept)
    monkeypatch.setattr(rendering, "PAGE_SECONDS", 0.2)
    text = "*a*\n```\nb\n```"
    assert markdown(text) == f'<div class="plain" dir="auto">{text}</div>'
    assert kept.bytes == 0  # it will be rendered another time
    monkeypatch.setattr(rendering, "PAGE_SECONDS", 60)
    assert "<em>a</em>" in markdown(text)


def test_nobody_waits_for_a_process_longer_than_a_page_may_take(
    pool: RenderProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.html_of("", 60)
    monkeypatch.setattr(rendering, "processes", pool)
    monkeypatch.setattr(rendering, "_rendered", Rendered())
    monkeypatch.setattr(rendering, "PAGE_SECONDS", 0)
    with one_page():
        assert markdown("*a* `b` ```c").startswith('<div class="plain"')


def test_few_threads_wait_for_the_processes(pool: RenderProcesses) -> None:
    pool.html_of("", 60)
    process = pool._free.get_nowait()  # the process is busy
    with ThreadPoolExecutor(MOST_WAITING) as threads:
        waiting = [threads.submit(pool.html_of, "*a*", 60) for _ in range(MOST_WAITING)]
        while pool._places._value:
            time.sleep(0.001)
        with pytest.raises(Busy):
            pool.html_of("*b*", 60)
        pool._free.put(process)
        assert [each.result(60) for each in waiting] == ['<p dir="auto"><em>a</em></p>\n'] * MOST_WAITING


def test_a_process_knows_none_of_our_secrets(pool: RenderProcesses, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://secret")
    monkeypatch.setenv("PREFLOOP_SECRET_KEY", "secret")
    pool.html_of("", 60)
    environ = Path(f"/proc/{child_of(pool)}/environ").read_bytes()
    assert b"PATH=" in environ
    assert b"secret" not in environ


# ---- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "[a]: http://" + "b" * 24_000 + "\n\n" + "[a]" * 8_000,  # this used to be a page of 146 MB
        "<a@b> " * 8_000,
        "|" * 8_000 + "\n" + "|-" * 8_000 + "\n" + "|\n" * 9_000,
        "```python\n" + "(" * (HIGHLIGHT_LIMIT - 10) + "\n```\n" + "[]" * 10_000,
        "&" * MARKDOWN_LIMIT,
    ],
)
def test_no_text_becomes_a_page_much_larger_than_itself(text: str) -> None:
    assert len(text) <= MARKDOWN_LIMIT
    assert len(markdown(text)) <= MOST_HTML


def test_what_is_kept_is_bounded_in_bytes() -> None:
    kept = Rendered(100_000)
    for n in range(200):
        kept.keep(f"{n}" * 100, f"<p>{n}</p>" * 1_000 if n % 7 else None)
    assert 0 < kept.bytes <= 100_000
    assert sum(sys.getsizeof(html) for html, _ in kept._kept.values()) < 100_000
    assert kept.get("199" * 100) is not None
    with pytest.raises(KeyError):
        kept.get("1" * 100)
    kept.keep("a", "b" * 200_000)
    assert kept.bytes <= 100_000


def test_code_is_coloured_in_listed_languages_only() -> None:
    assert 'class="hl-' in (html_of("```Python\nx = 1\n```") or "")
    for language in ("brainfuck", "python3 x", "", "../python"):
        assert language not in LANGUAGES or not language
        assert "hl-" not in (html_of(f"```{language}\nx = 1\n```") or "")
    assert "hl-" not in (html_of(f"```python\n{'x = 1 ' * HIGHLIGHT_LIMIT}\n```") or "")


@pytest.mark.parametrize(("value", "shown"), [(2120, "2,120"), ("–", "–"), (7, "7")])
def test_figures_are_grouped_by_thousands(value: object, shown: str) -> None:
    stat = templates.get_template("macros.html").module.stat  # type: ignore[attr-defined]
    assert f'<span class="stat-value">{shown}</span>' in str(stat("Ties", value))

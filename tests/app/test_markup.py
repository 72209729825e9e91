"""Markdown of strangers as HTML: what is drawn, what is refused, and how long it may take."""

import re
import time
import tracemalloc

import pytest

from app.markup import HIGHLIGHT_LIMIT, MARKDOWN_LIMIT, markdown
from app.render import templates


@pytest.mark.parametrize(
    "text",
    [
        "[x](javascript:alert(1))",
        "<img src=x onerror=alert(1)>",
        '```a"onmouseover=alert(1)\ncode\n```',
        '[x](http://example.org "t\\" onclick=alert(1)")',
        "<script>alert(1)</script>",
    ],
)
def test_nothing_in_a_text_becomes_code(text: str) -> None:
    html = str(markdown(text))
    assert "alert(1)" in html or "code" in html  # what was written is still to be read
    for opening in ("<script", "<img", 'href="javascript', '" onclick', '"onmouseover'):
        assert opening not in html


def test_an_image_is_a_link_and_links_leave_the_page_open() -> None:
    html = str(markdown("![A cat](http://example.org/cat.png)"))
    assert "<img" not in html
    assert 'href="http://example.org/cat.png"' in html
    assert ">A cat</a>" in html
    assert 'target="_blank"' in html
    assert "noopener" in html


def formulas(text: str) -> list[str]:
    return re.findall(r'<span class="math[^"]*">(.*?)</span>', str(markdown(text)), re.DOTALL)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("so \\(a_b\\) is", ["a_b"]),
        ("so \\[ c \\] is", [" c "]),
        ("so $$d$$ is", ["d"]),
        ("so $x^2$, $n$ and $2x + 3$ are", ["x^2", "n", "2x + 3"]),
        ("$$\n- a\n= b\n$$", ["\n- a\n= b\n"]),  # no list, no heading
        ("text\n\\[\na\n\\]\ntext", ["\na\n"]),
        ("> $$\n> x\n> $$", ["\nx\n"]),
        ("$a < b$", ["a &lt; b"]),
        # Money, shells and code are none.
        ("it costs $5 and $10", []),
        ("between $20-$30, or US$6 or $7", []),
        ("$5/month and 7$/month", []),
        ("$10 per user, 20$ flat", []),
        ("$HOME/bin:$PATH", []),
        ("`$x$` and ``\\(y\\)``", []),
        ("```\n$$\nx\n$$\n```", []),
        ("\\$5 and \\$6", []),
        ("\\\\(x\\\\)", []),
        ("$$ never closed", []),
        ("$ x $", []),
    ],
)
def test_formulas(text: str, found: list[str]) -> None:
    assert formulas(text) == found


def test_a_formula_is_text_until_it_is_drawn() -> None:
    html = str(markdown("\\(<img src=x onerror=alert(1)>\\)\n\n$$\n<script>\n$$"))
    assert "<img" not in html
    assert "<script" not in html


def test_each_block_finds_its_own_direction() -> None:
    html = str(markdown("مرحبا\n\nhello\n\n- قائمة\n\n| أ |\n|---|\n| ب |"))
    assert re.findall(r'<(\w+) dir="auto"', html) == ["p", "p", "ul", "table"]


def test_a_text_too_long_for_markdown_is_cut_behind_show_all() -> None:
    html = str(markdown("<b>line</b>\n" * 100_000))
    first, rest = html.split("<details")
    assert len(first) < 3 * 20_000  # as entities
    assert "more characters" in rest
    assert "<b>" not in html
    assert html.count("&lt;b&gt;line&lt;/b&gt;") == 100_000


@pytest.mark.parametrize(
    "unit",
    [
        "[", "*a **b ", "> ", "`` ` ", "[a](b ", "$a", "$$a ", "_a__b", "|", "|\n", "<", "\\(", "\\[\na\n", "\\[\n",
        "a\n$$\n", "&", "![a]", "[a]: b\n", "~~a", "- ", "#", "\u200d", "\u202e", "x\u0301", "```python\n(", "'''\n",
    ],
)  # fmt: skip
def test_no_text_takes_longer_than_reading_it(unit: str) -> None:
    text = (unit * MARKDOWN_LIMIT)[:MARKDOWN_LIMIT]
    begun = time.process_time()
    markdown(text)
    assert time.process_time() - begun < 2


def test_what_is_shown_as_it_is_is_not_kept() -> None:
    """Texts of a megabyte, of which a project may have thousands."""
    tracemalloc.start()
    try:
        for n in range(20):
            assert str(n) in markdown(f"{n} " + "word " * 200_000)
        assert tracemalloc.get_traced_memory()[0] < 5_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("macro", ["dialogue", "conversation"])
def test_no_conversation_takes_longer_than_its_longest_turn(macro: str) -> None:
    """Each turn alone is within the limit. What fits it together is read as Markdown, the rest is shown as it is."""
    long = ("[" * MARKDOWN_LIMIT)[: MARKDOWN_LIMIT // 2 - 10]
    turns = [{"role": "user", "content": "*first* " + long}, {"role": "assistant", "content": "*second* " + long}]
    turns += [{"role": "user" if n % 2 else "assistant", "content": f"*late* {n} " + long} for n in range(20)]
    begun = time.process_time()
    shown = str(getattr(templates.get_template("macros.html").module, macro)(turns))
    assert time.process_time() - begun < 2
    assert shown.count("<em>") == 2
    assert shown.count("*late*") == 20
    assert shown.count("[") == 22 * len(long)


def test_code_in_many_blocks_is_coloured_within_the_time_of_one() -> None:
    block = "```xml\n" + "<!--" * (HIGHLIGHT_LIMIT // 4 - 2) + "\n```\n"
    begun = time.process_time()
    markdown((block * 10)[:MARKDOWN_LIMIT])
    assert time.process_time() - begun < 2

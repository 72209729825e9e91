"""Strangers' Markdown as HTML: what is rendered, what stays as written, and what is refused."""

import random
import re
import tracemalloc

import pytest
from bs4 import BeautifulSoup

from app.markup import html_of
from app.render import templates
from app.rendering import MARKDOWN_LIMIT, markdown


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
    page = BeautifulSoup(markdown(text), "html.parser")
    assert "alert(1)" in str(page) or "code" in str(page)  # the text itself can still be read
    assert page.find_all(["script", "img"]) == []
    for element in page.find_all(True):
        assert not any(name.startswith("on") for name in element.attrs)
        assert not element.get("href", "").startswith("javascript")


def test_an_image_is_a_link_and_links_leave_the_page_open() -> None:
    html = str(markdown("![A cat](http://example.org/cat.png)"))
    assert "<img" not in html
    assert 'href="http://example.org/cat.png"' in html
    assert ">A cat</a>" in html
    assert 'target="_blank"' in html
    assert "noopener" in html


# Texts that people judged in another form than they were written, and their rendering now.
SHOWN = [
    ("2*3*4 = 24", "2*3*4 = 24"),
    ("2**3**4", "2**3**4"),
    ("__init__ and _x_", "__init__ and _x_"),
    ("Paris.\n\n[1]: https://example.org/a", "Paris. [1]: https://example.org/a"),
    ("[answer]: 42", "[answer]: 42"),
    ("&copy; &amp; \\d+\\.\\d+ \\*", "&copy; &amp; \\d+\\.\\d+ \\*"),
    ("2+2\n=\n4", "2+2 = 4"),
    ("f[i](x) and [a](javascript:b)", "f[i](x) and [a](javascript:b)"),
    ("3. three\n3. three\n7. seven", "3. three 3. three 7. seven"),
    ("```42\n```", "42"),
    ("```python title\nx\n```", "python title x"),
    # If a renderer would leave something out, the whole text is plain.
    ("# ##", "# ##"),
    (">", ">"),
    ("007. Bond", "007. Bond"),
    ("| a |\n|---|\n| b | lost |", "| a | |---| | b | lost |"),
    ("\\(a % b\\)", "\\(a % b\\)"),
    ("$\\phantom{x}$", "$\\phantom{x}$"),
    ("[a](https://example.org/?a=1&amp;b=2)", "[a](https://example.org/?a=1&amp;b=2)"),
]


def seen(html: str) -> str:
    """Return the page's text as one line. Browsers count list numbers; all other text is in the page."""
    numbered = re.sub(r'<li value="(\d+)">', r"<li>\1. ", str(html))
    return " ".join(BeautifulSoup(numbered, "html.parser").get_text(" ").split())


@pytest.mark.parametrize(("text", "shown"), SHOWN)
def test_nothing_is_lost(text: str, shown: str) -> None:
    assert seen(markdown(text)) == shown


def test_line_breaks_and_depth_are_kept() -> None:
    assert str(markdown("one\ntwo")) == '<p dir="auto">one<br>\ntwo</p>\n'
    assert "<br>" not in markdown("one two")
    ten = "\n".join(f"{'  ' * depth}- level {depth}" for depth in range(10))
    assert markdown(ten).count("<ul") == 10
    hundred = "\n".join(f"{'  ' * depth}- level {depth}" for depth in range(100))
    assert markdown(hundred) == f'<div class="plain" dir="auto">{hundred}</div>'  # deeper than lists are rendered


def test_emphasis_that_people_mean_is_drawn() -> None:
    assert re.findall("<(?:em|strong|s)>", markdown("**a** *b* (*c*) ~~d~~ 这是**重点**文字")) == [
        "<strong>", "<em>", "<em>", "<s>", "<strong>"
    ]  # fmt: skip


PIECES = [
    *("*", "**", "_", "__", "`", "``", "```", "~~", "~~~", "#", "# ", "> ", "- ", "* ", "1. ", "07) ", "|", "|-|", "="),
    *("===", "[", "]", "(", ")", "[a]: b", "](x)", "<", ">", "<b>", "<!--", "-->", "&", "&lt;", "&#65;", "\\", "\\("),
    *("\\)", "$", "$$", "!", ":", '"', "'", " ", " ", "  ", "    ", "\t", "\n", "\n", "\n\n", "a", "b1", "é", "文"),
    *("😀", "%", "---"),
]


def test_no_letter_is_ever_lost() -> None:
    """In texts made of marks, a person sees every letter, digit and sign in order."""
    luck = random.Random(5)
    drawn = 0
    for _ in range(1_500):
        text = "".join(luck.choices(PIECES, k=luck.randrange(1, 25)))
        html = html_of(text)
        if html is not None:
            drawn += 1
            letters = [re.sub(r"[\s#*~`|\-:()\[\]<>\"'\\$._]+", "", each) for each in (text, seen(html))]
            assert letters[0] == letters[1], (text, html)
    assert drawn > 500


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


def test_what_is_shown_as_it_is_is_not_kept() -> None:
    """A project may have thousands of texts of a megabyte."""
    tracemalloc.start()
    try:
        for n in range(20):
            assert str(n) in markdown(f"{n} " + "word " * 200_000)
        assert tracemalloc.get_traced_memory()[0] < 5_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("macro", ["dialogue", "conversation"])
def test_a_conversation_is_markdown_up_to_the_limit_of_one_text(macro: str) -> None:
    """Each turn alone is within the limit. Turns within the total limit are Markdown, and the rest is plain."""
    long = ("a word, " * MARKDOWN_LIMIT)[: MARKDOWN_LIMIT // 2 - 10]
    turns = [{"role": "user", "content": "*first* " + long}, {"role": "assistant", "content": "*second* " + long}]
    turns += [{"role": "user" if n % 2 else "assistant", "content": f"*late* {n} " + long} for n in range(20)]
    shown = str(getattr(templates.get_template("macros.html").module, macro)(turns))
    assert shown.count("<em>") == 2
    assert shown.count("*late*") == 20
    assert shown.count("word") == 22 * long.count("word")

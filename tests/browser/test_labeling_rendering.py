"""How texts are shown: formulas, code, other scripts, long answers side by side, and texts that mean harm."""

import random

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy.orm import Session

from app.documents import DEFAULT_ASPECTS, DEFAULT_FLAGS
from app.rendering import markdown, written
from tests import factories
from tests.browser.keys import press
from tests.browser.test_labeling import OpenPage, all_sent, judgments, open_desk


def unswapped(session: Session, open_page: OpenPage, first: str, second: str, **kwargs: object) -> Page:
    """A desk that shows `first` first."""
    project = factories.project(session, overlap=1)
    prompt = factories.prompt(session, project, "Well?")
    comparison = factories.comparison(session, project, prompt=prompt, texts=(first, second))
    labeler = factories.user(session, "labeler")
    factories.lease(session, comparison, labeler_id=labeler.id, swapped=False)
    session.commit()
    return open_desk(open_page, project, user=labeler, **kwargs)


def test_formulas_are_drawn_and_prices_are_not(session: Session, open_page: OpenPage) -> None:
    text = "It is \\(x^2\\), and\n\n$$\n\\vec{v} = \\frac{1}{2}\n$$\n\nfor $5 or $10; "
    text += "\\(\\notacommand{\\) stays, `$x$` too."
    page = unswapped(session, open_page, text, "plain")
    violations: list[str] = []
    page.on("console", lambda message: violations.append(message.text) if message.type == "error" else None)
    page.reload()
    first = page.locator(".response-first")
    expect(first.locator(".katex")).to_have_count(2)
    expect(first.locator(".katex-display")).to_have_count(1)
    expect(first.locator("math annotation").first).to_have_text("x^2")  # and as MathML for screen readers
    expect(first).to_contain_text("for $5 or $10;")
    expect(first).to_contain_text("\\notacommand{")
    expect(first.locator("code")).to_have_text("$x$")
    fonts = page.evaluate(
        "document.fonts.ready.then(fonts => [...fonts].filter(f => f.status === 'loaded').map(f => f.family))"
    )
    assert any("KaTeX" in family for family in fonts)
    assert violations == []


def test_the_next_card_has_its_formulas_drawn_already(session: Session, open_page: OpenPage) -> None:
    project = factories.project(session, overlap=1)
    for n in range(2):
        factories.comparison(session, project, texts=(f"\\(a_{n}\\)", "b"))
    session.commit()
    page = open_desk(open_page, project)
    page.locator("#desk[data-ahead]").wait_for()
    press(page, "1", "Enter")
    expect(page.locator(".response .katex")).to_have_count(1)


def test_differences_are_marked_and_remembered(session: Session, open_page: OpenPage) -> None:
    page = unswapped(
        session, open_page, "The **quick** brown fox, 一二三四.", "The **slow** brown fox jumps, 一二五四."
    )
    marked = """name => [...(CSS.highlights.get(name) ?? [])].map(range => range.toString())"""
    assert page.evaluate(marked, "only-first") == []
    press(page, "d")
    expect(page.get_by_role("button", name="Differences")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#announce")).to_have_text("5 words differ.")
    assert page.evaluate(marked, "only-first") == ["quick", "三"]
    assert page.evaluate(marked, "only-second") == ["slow", "jumps", "五"]
    page.reload()
    assert page.evaluate(marked, "only-second") == ["slow", "jumps", "五"]
    press(page, "d")
    assert page.evaluate(marked, "only-second") == []


# Pairs that look alike once they are formatted, or in how many words they differ; and what is said about them.
ALIKE = [
    ("one\ntwo", "one two", "0 words differ. Spaces or line breaks differ in 1 place."),
    ("f(x)", "f (x)", "0 words differ. Spaces or line breaks differ in 1 place."),
    ("a\n\n\nb ", "a\n\nb", "0 words differ. Spaces or line breaks differ in 2 places."),
    ("**yes** or no", "yes or no", "4 words differ."),
    ("[a](https://example.org/1)", "[a](https://example.org/2)", "2 words differ."),
    ("so `ab`", "so `a\u200bb`", "8 words differ."),  # ab; and a [ U + 200B ] b
    ("*the* same", "*the* same", "The texts are the same."),
]


def test_differences_are_those_of_the_texts_as_written(session: Session, open_page: OpenPage) -> None:
    """What the desk says for each pair, from the texts that its cards hold."""
    page = unswapped(session, open_page, "a", "b")
    cards = [[written(text, markdown(text)) or text for text in (first, second)] for first, second, _ in ALIKE]
    said = page.evaluate(
        """async cards => { const { differencesInWords, markDifferences } = await import("/static/js/label-compare.js");
        const shown = text => Object.assign(document.createElement("div"), { textContent: text });
        return cards.map(card => differencesInWords(markDifferences(...card.map(shown)))); }""",
        cards,
    )
    assert said == [words for *_, words in ALIKE]


def test_what_differs_is_said_on_the_desk(session: Session, open_page: OpenPage) -> None:
    """Line ends at the end of a text have no place where a mark could be seen."""
    page = unswapped(session, open_page, "Paris.", "Paris.\n")
    said = page.locator("[data-found]")
    expect(said).to_be_hidden()
    press(page, "d")
    expect(said).to_have_text("0 words differ. Spaces or line breaks differ in 1 place.")
    page.reload()
    expect(said).to_be_visible()
    press(page, "d")
    expect(said).to_be_hidden()


def test_the_texts_are_shown_as_written_by_a_key(session: Session, open_page: OpenPage) -> None:
    page = unswapped(session, open_page, "It is **bold**,\n- one\n- two", "plain", width=390)
    first, button = page.locator(".response-first"), page.get_by_role("button", name="As written")
    expect(button).to_have_attribute("aria-pressed", "false")
    expect(first.locator("strong")).to_be_visible()
    press(page, "w")
    expect(button).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#announce")).to_have_text("The texts are shown as written.")
    expect(first.locator("strong")).to_be_hidden()
    assert first.inner_text().endswith("It is **bold**,\n- one\n- two")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.reload()  # and remembered
    expect(first.locator(".written")).to_be_visible()
    button.click()
    expect(first.locator("strong")).to_be_visible()
    press(page, "d")  # differences are marked in it, and end with it
    expect(button).to_have_attribute("aria-pressed", "true")
    press(page, "w")
    expect(page.get_by_role("button", name="Differences")).to_have_attribute("aria-pressed", "false")
    expect(first.locator(".written")).to_be_hidden()


def common(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence, by the textbook's table."""
    above = [0] * (len(b) + 1)
    for one in a:
        row = [0]
        for j, other in enumerate(b):
            row.append(above[j] + 1 if one == other else max(above[j + 1], row[j]))
        above = row
    return above[-1]


def test_differences_leave_a_longest_common_subsequence(session: Session, open_page: OpenPage) -> None:
    page = unswapped(session, open_page, "a", "b")
    luck = random.Random(1)
    cases = [[luck.choices("abcd", k=luck.randrange(12)) for _side in range(2)] for _ in range(300)]
    found = page.evaluate(
        """async cases => { const { differences } = await import("/static/js/label-compare.js");
        return cases.map(([a, b]) => differences(a, b).map(marks => [...marks])); }""",
        cases,
    )
    for (a, b), marks in zip(cases, found, strict=True):
        kept = [
            [word for word, marked in zip(*side, strict=True) if not marked] for side in zip((a, b), marks, strict=True)
        ]
        assert kept[0] == kept[1]
        assert len(kept[0]) == common(a, b)


def test_differences_of_very_long_texts_are_found_in_time(session: Session, open_page: OpenPage) -> None:
    words = [f"word{n * 7919 % 10_007}" for n in range(5000)]  # not so long that a part is folded
    page = unswapped(session, open_page, " ".join(words), " ".join(reversed(words)))
    took = page.evaluate(
        """() => { const begun = performance.now(); document.querySelector('[data-toggle=diff]').click();
        return performance.now() - begun; }"""
    )
    assert took < 2000
    # Edits within the bound are exact: one word replaced among thousands.
    page = unswapped(session, open_page, " ".join(words), " ".join([*words[:3000], "other", *words[3001:]]))
    press(page, "d")
    expect(page.locator("#announce")).to_have_text("2 words differ.")


def test_long_answers_scroll_together_when_wanted(session: Session, open_page: OpenPage) -> None:
    page = unswapped(session, open_page, "\n\n".join(["a paragraph"] * 200), "\n\n".join(["another"] * 400))
    first, second = page.locator(".response-first"), page.locator(".response-second")
    share = "e => e.scrollTop / (e.scrollHeight - e.clientHeight)"
    first.evaluate("e => { e.scrollTop = (e.scrollHeight - e.clientHeight) / 2; }")
    frames = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
    page.evaluate(frames)  # scroll events come with the next frame
    assert second.evaluate(share) == 0
    press(page, "y")
    first.evaluate("e => { e.scrollTop = (e.scrollHeight - e.clientHeight) / 4; }")
    page.locator(".response-second").evaluate(
        "e => new Promise(done => { const look = () => e.scrollTop ? done() : requestAnimationFrame(look); look(); })"
    )
    assert second.evaluate(share) == pytest.approx(0.25, abs=0.01)
    press(page, "j")  # both go on by keys
    assert first.evaluate(share) > 0.25


@pytest.mark.parametrize("width", [1440, 390])
def test_other_scripts(session: Session, open_page: OpenPage, width: int) -> None:
    arabic = "مرحبا بالعالم.\n\nEnglish in between.\n\n- قائمة\n- ثانية\n\n```\ncode = 1\n```"
    chinese = "这是一个没有空格的很长的句子" * 40
    page = unswapped(session, open_page, arabic, chinese, width=width)
    first = page.locator(".response-first .prose")
    directions = first.locator("> *").evaluate_all("all => all.map(e => getComputedStyle(e).direction)")
    assert directions == ["rtl", "ltr", "rtl", "ltr"]
    assert first.locator("code").evaluate("e => getComputedStyle(e).direction") == "ltr"
    second = page.locator(".response-second .prose p")
    assert second.evaluate(
        "e => e.getClientRects().length && e.offsetHeight > 3 * parseFloat(getComputedStyle(e).lineHeight)"
    )
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


# --- texts that mean harm --------------------------------------------------------------------------------------------

SCRIPTS = (
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'><svg onload='window.hacked = 3'>"
    "<a href='javascript:window.hacked=4'>a</a> [b](javascript:window.hacked=5) ![c](data:text/html,<script>1</script>)"
    " ![d](http://203.0.113.1/pixel.png) <iframe srcdoc='<script>parent.hacked=6</script>'></iframe>"
    "<form action='http://203.0.113.1/'><button>Submit</button></form><base href='http://203.0.113.1/'>"
    "<link rel=stylesheet href='http://203.0.113.1/x.css'><meta http-equiv=refresh content='0;url=http://203.0.113.1/'>"
    "\n\n<style>body { display: none }</style>\n\n</section></article></main></textarea></template>\n\n"
    "\\(\\href{javascript:window.hacked=7}{x}\\) \\(\\htmlStyle{position:fixed}{x}\\) "
    "\\(\\includegraphics{http://203.0.113.1/x}\\)"
    " \\(\\rule{9999em}{9999em}\\) \\(\\def\\a{\\a\\a}\\a\\)"
)
LAYOUT = (
    "\u202eright to left override\u202e \u2066isolate \u2067\u2067\u2067 " + "unbroken" * 500
    + "\n\n| a | b |\n|---|---|\n| " + "cell" * 300 + " | x |\n\n"
    + "\u200b\u200d\u2060\ufeff" * 500 + "\n\n" + "x" + "\u0336\u0301" * 300
    + "\n\n" + "> " * 300 + "deep\n\n" + "".join("  " * n + "- item\n" for n in range(100))
    + "\n\n**" * 50 + "[" * 200 + "\n\n# " + "head" * 300 + "\n\n```python\n" + "wide = " * 300 + "\n"  # an open fence
)  # fmt: skip
HUGE = "word " * 200_000  # a megabyte
HUGE_LINE = "x" * 1_000_000


class Watch:
    """What a page must not do: open a dialog, ask anybody but the service, leave."""

    def __init__(self, page: Page, live: str) -> None:
        self.outside: list[str] = []
        self.dialogs: list[str] = []
        page.on("dialog", lambda dialog: (self.dialogs.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: None if request.url.startswith(live) else self.outside.append(request.url))
        self.page = page

    def nothing_happened(self) -> None:
        assert self.page.evaluate("window.hacked") is None
        assert self.dialogs == []
        assert self.outside == []
        assert self.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert (
            self.page.evaluate(
                "document.querySelectorAll('.task iframe, .task script, .task style, .task base').length"
            )
            == 0
        )
        assert self.page.evaluate("getComputedStyle(document.body).display") != "none"
        hrefs = self.page.locator("#desk .prose a").evaluate_all("all => all.map(a => a.protocol)")
        assert set(hrefs) <= {"http:", "https:", "mailto:"}


@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("text", [SCRIPTS, LAYOUT, HUGE, HUGE_LINE], ids=["scripts", "layout", "huge", "huge-line"])
def test_hostile_text_neither_runs_nor_breaks_the_layout(
    session: Session, open_page: OpenPage, live: str, width: int, text: str
) -> None:
    short = text[:250]
    project = factories.project(session, name=f"\u202e<b>{short}"[:200])
    prompt = factories.prompt(session, project)
    prompt.messages = [{"role": "system", "content": text}, {"role": "user", "content": text}]
    aspects = [aspect.model_dump() | {"question": short} for aspect in DEFAULT_ASPECTS]
    flags = [flag.model_dump() | {"label": short} for flag in DEFAULT_FLAGS]
    guideline = text[:50_000]
    factories.rubric(session, project, guideline=guideline, aspects=aspects, flags=flags)
    factories.comparison(session, project, prompt=prompt, texts=(text, text))
    labeler = factories.user(session, "labeler", name=f"<i>{short}"[:200])
    session.commit()
    page = open_page(user=labeler, width=width)
    watch = Watch(page, live)
    page.goto(f"/projects/{project.slug}/label")
    press(page, "p", "r", "d")
    watch.nothing_happened()
    # However long the texts, the answer is in reach.
    expect(page.get_by_role("button", name="Submit").last).to_be_in_viewport(ratio=1)
    press(page, "r", "e")
    page.keyboard.insert_text(SCRIPTS)
    press(page, "Escape", "4", "Enter")
    expect(page.locator(".idle")).to_be_visible()
    all_sent(page)
    page.goto(f"/projects/{project.slug}/label/mine")
    expect(page.locator("tbody tr")).to_have_count(1)
    watch.nothing_happened()
    [judgment] = judgments(session)
    assert judgment.rationale == SCRIPTS.strip()


def test_a_megabyte_can_be_read_to_its_end(session: Session, open_page: OpenPage) -> None:
    lines = "\n".join(f"line {n} of a very long answer" for n in range(33_000))
    assert len(lines) > 1_000_000
    page = unswapped(session, open_page, lines, HUGE)
    expect(page.locator(".response-first")).to_contain_text("line 500 of")
    last = page.locator(".response-first").get_by_text("line 32999 of", exact=False)
    expect(last).to_be_hidden()
    page.locator(".response-first").get_by_text("Show all of it").click()
    expect(last).to_be_visible()

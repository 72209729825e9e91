"""Measure how long a labeler waits, in a real browser on the loopback interface.

95 of 100 next cards must appear within 150 ms, and a card with two responses of a megabyte within a second. Run it with
`python -m pytest -p tests.conftest -s benchmarks/test_desk.py`. It uses the tests' server and browser, but is not part
of the tests, because the results also depend on the machine.
"""

import statistics
import time

from playwright.sync_api import Page, expect
from sqlalchemy.orm import Session

from tests.browser.test_labeling import OpenPage, judgments, open_desk
from tests.browser.test_labeling_flow import rich_project
from tests.browser.test_labeling_rendering import HUGE, unswapped

# Measures from the key that submits to the frame that shows another question.
STOPWATCH = """() => {
  window.waited = [];
  let pressed = 0;
  addEventListener("keydown", (event) => { if (event.key === "Enter") pressed = performance.now(); }, true);
  const question = () => document.querySelector(".conversation")?.textContent;
  let shown = question();
  new MutationObserver(() => {
    const now = question();
    if (!now || now === shown || !pressed) return;
    shown = now;
    const since = pressed;
    pressed = 0;
    requestAnimationFrame(() => setTimeout(() => window.waited.push(performance.now() - since)));
  }).observe(document.getElementById("desk"), { childList: true });
}"""


def time_judgments(page: Page, n: int) -> list[float]:
    """Return the milliseconds from submit to the next card for n judgments in a row."""
    page.evaluate(STOPWATCH)
    for number in range(n):
        # A person reads the card first; the next card is loaded meanwhile.
        page.locator("#desk[data-ahead]").wait_for()
        page.keyboard.press("1234567"[number % 7])
        page.keyboard.press("Enter")
        page.locator(".conversation", has_text=f"Question number {number + 1}?").wait_for()
    found = page.evaluate("() => new Promise(done => requestAnimationFrame(() => setTimeout(() => done(waited))))")
    return [float(each) for each in found]


def test_the_next_card_is_there_within_150_ms(session: Session, open_page: OpenPage) -> None:
    project = rich_project(session, 205)
    page = open_desk(open_page, project)
    waited = time_judgments(page, 202)
    assert len(waited) == 202
    cuts = statistics.quantiles(waited, n=100)
    print(f"\nsubmit to next card: p50 {cuts[49]:.0f} ms, p95 {cuts[94]:.0f} ms, most {max(waited):.0f} ms")
    assert cuts[94] < 150
    expect(page.locator("#desk:not([data-unsent])")).to_be_visible()
    assert len(judgments(session)) == 202


def test_a_megabyte_is_there_within_a_second(session: Session, open_page: OpenPage) -> None:
    page = unswapped(session, open_page, HUGE, HUGE)
    begun = time.monotonic()
    page.reload(wait_until="load")
    expect(page.get_by_role("button", name="Submit")).to_be_visible()
    seconds = time.monotonic() - begun
    print(f"\ntwo responses of a megabyte: {seconds:.2f} s")
    assert seconds < 1

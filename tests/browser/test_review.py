"""What a reviewer does in a browser, by keys alone and without JavaScript."""

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.labeling import settling
from app.models import Adjudication, Comparison, LabelerGroup, LabelerGroupMember, Project
from app.review import service
from tests import factories
from tests.browser.keys import press


def split(session: Session, project: Project, number: int, *preferences: int, **values: Any) -> Comparison:
    """A comparison that labelers judged, differently if nothing else is said."""
    given = preferences or (2, -1)
    prompt = factories.prompt(session, project, f"Question {number}?")
    texts = (f"Left {number}", f"Right {number}")
    row = factories.comparison(session, project, prompt=prompt, texts=texts, overlap=len(given), **values)
    for preference in given:
        factories.judgment(session, row, preference=preference, rationale="It cites a **source**.")
    settling.settle(session, [row.id])
    return row


def arrived(page: Page, text: str) -> None:
    """The page that says this is there, and listens to keys."""
    expect(page.get_by_text(text)).to_be_visible()
    expect(page.locator("html.js")).to_be_attached()


def state(session: Session, row: Comparison) -> str:
    session.rollback()
    return session.scalars(select(Comparison.state).where(Comparison.id == row.id)).one()


def test_the_queue_by_keys_alone(session: Session, open_page: Callable[..., Page]) -> None:
    project = factories.project(session)
    rows = [split(session, project, number) for number in range(4)]
    session.commit()
    page = open_page("admin")
    page.goto(f"/projects/{project.slug}/review")
    expect(page.get_by_role("link", name="Disagreement 4")).to_have_attribute("aria-current", "page")
    expect(page.get_by_text("1 for A, 1 for B").first).to_be_visible()
    page.get_by_role("link", name="Start reviewing").press("Enter")

    # The case shows what the labelers said.
    arrived(page, "Question 0?")
    expect(page.get_by_text("It cites a **source**.").first).to_be_visible()
    expect(page.locator(".response-first")).to_contain_text("Left 0")

    # Later leads on without a decision.
    press(page, "s")
    arrived(page, "Question 1?")

    # A verdict with a note; typing in the note presses no keys.
    press(page, "6")
    expect(page.get_by_role("radio", name="B is better", exact=True)).to_be_checked()
    press(page, "e")
    page.keyboard.type("w is for withdraw, 1 for A")
    press(page, "Escape")
    press(page, "Enter")
    arrived(page, "Question 2?")
    session.rollback()
    verdict = session.scalars(select(Adjudication)).one()
    assert (verdict.comparison_id, verdict.verdict, verdict.note) == (rows[1].id, 2, "w is for withdraw, 1 for A")

    press(page, "m")
    arrived(page, "Question 3?")
    assert state(session, rows[2]) == "open"

    # Withdrawing asks for its reason first, then for a second key.
    press(page, "w")
    expect(page.get_by_role("textbox", name="Note")).to_be_focused()
    page.keyboard.type("Both leak a name.")
    press(page, "Escape")
    press(page, "w")
    expect(page.get_by_role("button", name="Withdraw")).to_be_focused()
    assert state(session, rows[3]) == "in_review"
    press(page, "Enter")
    arrived(page, "Question 0?")
    assert state(session, rows[3]) == "withdrawn"

    # Enter without a choice decides nothing: the form asks for one.
    press(page, "Enter")
    arrived(page, "Question 0?")
    assert state(session, rows[0]) == "in_review"
    press(page, "1")
    press(page, "c")
    expect(page.get_by_role("checkbox", name="Also make it a calibration item")).to_be_checked()
    press(page, "Enter")
    expect(page.get_by_text("Nothing to review here")).to_be_visible()
    assert state(session, rows[0]) == "adjudicated"
    assert session.scalars(select(Comparison.gold).where(Comparison.purpose == "calibration")).all() == [-3]


def test_keys_are_listed_and_single_ones_can_be_switched_off(session: Session, open_page: Callable[..., Page]) -> None:
    project = factories.project(session)
    row = split(session, project, 0)
    session.commit()
    page = open_page("admin")
    page.goto(f"/projects/{project.slug}/review/{row.id}")
    arrived(page, "Question 0?")
    press(page, "?")
    sheet = page.get_by_role("dialog", name="Keys")
    expect(sheet).to_contain_text("1 … 7choose a verdict, from A to B")
    press(page, "1")  # nothing behind the open list is pressed
    page.get_by_label("Use keys without").uncheck()
    press(page, "Escape")
    expect(sheet).to_be_hidden()
    press(page, "w")
    press(page, "1")
    page.get_by_role("button", name="Keys").click()
    page.get_by_label("Use keys without").check()
    sheet.get_by_role("button", name="Close").click()
    expect(page.locator("input[name=verdict]:checked")).to_have_count(0)
    press(page, "1")
    expect(page.locator("input[name=verdict]:checked")).to_have_count(1)
    assert state(session, row) == "in_review"


def test_texts_are_shown_as_written(session: Session, open_page: Callable[..., Page]) -> None:
    project = factories.project(session)
    prompt = factories.prompt(session, project, "Is it *so*?")
    row = factories.comparison(session, project, prompt=prompt, texts=("**Yes**", "Yes"), overlap=2)
    session.commit()
    page = open_page("admin")
    page.goto(f"/projects/{project.slug}/review/{row.id}")
    arrived(page, "Is it so?")
    first, button = page.locator(".response-first"), page.get_by_role("button", name="As written")
    expect(first.locator("strong")).to_be_visible()
    press(page, "t")
    expect(button).to_have_attribute("aria-pressed", "true")
    expect(first.get_by_text("**Yes**")).to_be_visible()
    expect(page.get_by_text("Is it *so*?")).to_be_visible()
    button.click()
    expect(first.locator("strong")).to_be_visible()


def test_conflicts_and_flags_by_keys(session: Session, open_page: Callable[..., Page]) -> None:
    project = factories.project(session)
    model = factories.model(session, project, "reward", name="reward-3")
    conflicts = [
        split(session, project, n, -2, -2, reward_p_b=p, reward_model_id=model.id, reward_trained=trained)
        for n, (p, trained) in enumerate([(0.99, True), (0.94, False)])
    ]
    flagged = split(session, project, 7, 1, 1)
    flagged.flagged = True
    session.commit()
    page = open_page("admin")
    page.goto(f"/projects/{project.slug}/review")
    page.get_by_role("link", name="Reward model disagrees 2").click()
    expect(page.locator("tbody tr").first).to_contain_text("2 for A; reward model 94% for B")
    expect(page.locator("tbody tr").first).to_contain_text("not trained on")
    expect(page.locator("tbody tr").last).to_contain_text("trained on it")
    page.get_by_role("link", name="Question 1?").click()
    arrived(page, "reward-3, not trained on it")
    press(page, "p")
    arrived(page, "Question 0?")
    press(page, "p")
    expect(page.get_by_text("Nothing to review here")).to_be_visible()
    assert {state(session, row) for row in conflicts} == {"settled"}
    assert session.scalars(select(Comparison.conflict_dismissed).order_by(Comparison.id)).all() == [True, True, False]

    page.get_by_role("link", name="Flagged 1").click()
    page.get_by_role("link", name="Start reviewing").click()
    arrived(page, "Question 7?")
    press(page, "d")
    expect(page.get_by_text("Nothing to review here")).to_be_visible()
    # Anything decided can be put up for review, and is decided about at once.
    page.goto(f"/projects/{project.slug}/review/{flagged.id}")
    press(page, "r")
    arrived(page, "sent it to review")
    press(page, "7")
    press(page, "Enter")
    expect(page.get_by_text("Nothing to review here")).to_be_visible()
    assert state(session, flagged) == "adjudicated"


def test_experts_are_asked_for_more(session: Session, open_page: Callable[..., Page]) -> None:
    project = factories.project(session)
    row = split(session, project, 1)
    experts = LabelerGroup(project_id=project.id, name="Experts")
    session.add(experts)
    session.flush()
    session.add(LabelerGroupMember(group_id=experts.id, labeler_id=factories.user(session).id))
    session.commit()
    page = open_page("admin")
    page.goto(f"/projects/{project.slug}/review/{row.id}")
    page.get_by_label("more from").select_option(label="Experts (1)")
    page.get_by_role("button", name="Ask").click()
    expect(page.get_by_text("Nothing to review here")).to_be_visible()
    session.rollback()
    session.refresh(row)
    assert (row.state, row.group_id, row.overlap) == ("open", experts.id, 3)


def test_relabeling_in_the_browser(session: Session, open_page: Callable[..., Page]) -> None:
    project = factories.project(session)
    factories.rubric(session, project, version=1)
    rows = [split(session, project, number, 1, -1 if number < 2 else 1) for number in range(3)]
    factories.rubric(session, project, version=2)
    session.commit()
    page = open_page("admin")
    page.goto(f"/projects/{project.slug}/review")
    page.get_by_role("link", name="Ask again under a new rubric").click()
    expect(page.get_by_text("3 comparisons, 6 new judgments.")).to_be_visible()
    page.get_by_label("Agreement below, %").fill("60")
    page.get_by_label("Judgments per comparison").fill("1")
    page.get_by_role("button", name="Count comparisons").click()
    expect(page.get_by_text("2 comparisons, 2 new judgments.")).to_be_visible()
    page.get_by_role("button", name="Ask them again").click()
    expect(page.get_by_text("2 comparisons are asked again.")).to_be_visible()
    assert [state(session, row) for row in rows] == ["withdrawn", "withdrawn", "settled"]
    again = session.scalars(select(Comparison).where(Comparison.relabel_of_id.is_not(None)))
    for row in again.all():
        factories.judgment(session, row, preference=1)
        settling.settle(session, [row.id])
    session.commit()
    page.reload()
    expect(
        page.get_by_text("2 of 2 comparisons asked again are decided. In 2 of them the winner changed.")
    ).to_be_visible()
    expect(page.get_by_role("row", name="Percent on one side")).to_contain_text("0.0%")


def test_a_phone_without_javascript(session: Session, open_page: Callable[..., Page]) -> None:
    project = factories.project(session)
    row = split(session, project, 1)
    session.commit()
    page = open_page("admin", width=390, javascript=False)
    for path in ("", "/relabel", f"/{row.id}"):
        page.goto(f"/projects/{project.slug}/review{path}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.get_by_role("radio", name="A is much better").check(force=True)
    page.get_by_role("textbox", name="Note").fill("Clearer.")
    page.get_by_role("button", name="Give verdict").click()
    expect(page.get_by_text("Nothing to review here")).to_be_visible()
    assert state(session, row) == "adjudicated"


def test_two_admins_at_once(session: Session, open_page: Callable[..., Page]) -> None:
    project = factories.project(session)
    row = split(session, project, 1)
    ada = factories.user(session, "admin", name="Ada Lovelace")
    session.commit()
    pages = [open_page(user=ada), open_page("admin")]
    for page in pages:
        page.goto(f"/projects/{project.slug}/review/{row.id}")
        press(page, "1" if page is pages[0] else "7")
    press(pages[0], "Enter")
    expect(pages[0].get_by_text("Nothing to review here")).to_be_visible()
    press(pages[1], "Enter")
    expect(pages[1].get_by_text("Ada Lovelace already gave the verdict on this comparison.")).to_be_visible()
    session.rollback()
    assert session.scalars(select(Adjudication.verdict)).all() == [-3]


def test_giving_up_a_judgment_to_review(session: Session, open_page: Callable[..., Page]) -> None:
    project = factories.project(session)
    row = factories.comparison(session, project, overlap=2, flagged=True)
    factories.judgment(session, row, preference=2, rationale="B says it.", flags=["harmful"])
    session.commit()
    page = open_page("admin", "labeler")
    page.goto(f"/projects/{project.slug}/review?queue=flagged")
    page.get_by_role("link", name="Start reviewing").click()
    expect(page.get_by_text("other people's judgments are hidden from you")).to_be_visible()
    expect(page.get_by_text("B says it.")).to_have_count(0)
    page.get_by_role("button", name="Give up judging it and review it").click()
    arrived(page, "B says it.")
    press(page, "d")
    expect(page.get_by_text("Nothing to review here")).to_be_visible()


@pytest.mark.parametrize("width", [1440, 390])
def test_texts_cannot_inject_or_break_the_page(session: Session, open_page: Callable[..., Page], width: int) -> None:
    project = factories.project(session, name="<b>x</b>" + "W" * 300)
    hostile = "<img src=x onerror=alert(1)>"
    texts = ("<script>document.title='x'</script>" + "A" * 3000, "![i](http://x/y.png)")
    row = factories.comparison(session, project, texts=texts, flagged=True)
    named = factories.user(session, name="<i>Eve</i>‮" + "M" * 200)
    factories.judgment(
        session, row, preference=1, labeler_id=named.id, rationale=hostile + "z" * 900, flags=["<u>" + "f" * 200]
    )
    factories.judgment(session, row, preference=-1)
    settling.settle(session, [row.id])
    session.commit()
    page = open_page("admin", width=width)
    for path in ("", "?queue=flagged", f"/{row.id}"):
        page.goto(f"/projects/{project.slug}/review{path}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        assert page.locator("main img, main i, main u, main script").count() == 0
    expect(page.get_by_text(hostile)).to_be_visible()
    expect(page.get_by_text("<script>document.title='x'</script>").filter(visible=True)).to_have_count(1)


def test_names_turn_no_words_around_them(session: Session, open_page: Callable[..., Page]) -> None:
    """What follows a name that begins to write from right to left still stands to its right."""
    project = factories.project(session)
    eve = factories.user(session, "admin", name="\u202eEve")
    row = split(session, project, 1)
    service.adjudicate(session, project, eve, row.id, verdict=1, note="\u202eBoth cite it.")
    session.commit()
    page = open_page("admin")
    page.goto(f"/projects/{project.slug}/review/{row.id}")
    for place, before, after in (
        (".message-ok", "bdi >> nth=0", "time"),
        (".message-ok", "time", "bdi >> nth=1"),
        (".decisions li", "time", "bdi >> nth=0"),
        (".decisions li", "bdi >> nth=0", "bdi >> nth=1"),
        (".decisions li", "bdi >> nth=1", "bdi >> nth=2"),
    ):
        boxes = [page.locator(place).locator(each).bounding_box() for each in (before, after)]
        assert boxes[0]
        assert boxes[1]
        assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"], (place, before, after)


# Formulas nested by their braces, and by macros that nest each other.
NESTED = {
    "fractions": "$$" + "\\frac{" * 180 + "x" + "}{y}" * 180 + "$$",
    "roots": "$$" + "\\sqrt{" * 250 + "x" + "}" * 250 + "$$",
    "accents": "$$" + "\\hat{" * 300 + "x" + "}" * 300 + "$$",
    "macros": "$$\\def\\f#1{\\frac{#1}{#1}}\\def\\g#1{\\sqrt{\\sqrt{\\sqrt{\\sqrt{#1}}}}}"
    + "\\g{" * 60
    + "x"
    + "}" * 60
    + "$$",
}


@pytest.mark.parametrize("kind", NESTED)
def test_no_formula_crashes_the_page(session: Session, open_page: Callable[..., Page], kind: str) -> None:
    """To lay out what is nested hundreds of times takes more stack than a browser has: it stays as it was written."""
    project = factories.project(session)
    row = factories.comparison(session, project, texts=(NESTED[kind] + "\n\n$$\\frac{1}{2}$$", "$$\\sqrt{2}$$"))
    session.commit()
    page = open_page("admin")
    page.goto(f"/projects/{project.slug}/review/{row.id}")
    expect(page.locator(".response .katex")).to_have_count(2)  # those that mean no harm
    assert page.evaluate("document.body.offsetHeight") > 0
    expect(page.locator(".response").first.get_by_text("x}").filter(visible=True)).to_have_count(1)

"""Putting k responses in order in a real browser: by keys, by dragging, by the lists, and what is stored."""

import itertools
import re

import pytest
from playwright.sync_api import Locator, Page, expect
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import Comparison, Completion, Judgment, Project, Ranking
from tests import factories
from tests.browser.keys import press
from tests.browser.test_labeling import OpenPage, all_sent, open_desk, wait_for_next


def ranking(session: Session, project: Project, k: int, question: str, **rubric: object) -> Ranking:
    """K completions, texts 1 to k, all pairs; A is the earlier one."""
    prompt = factories.prompt(session, project, question)
    rows = [factories.completion(session, prompt, f"Text {n}") for n in range(1, k + 1)]
    made = Ranking(project_id=project.id, prompt_id=prompt.id, size=k)
    session.add(made)
    session.flush()
    for number, (a, b) in enumerate(itertools.combinations(rows, 2)):
        factories.comparison(
            session,
            project,
            prompt=prompt,
            completion_a_id=a.id,
            completion_b_id=b.id,
            ranking_id=made.id,
            offered=number == 0,
        )
    session.commit()
    return made


def project_with_rankings(session: Session, k: int, n: int = 2, **rubric: object) -> Project:
    project = factories.project(session, overlap=1)
    factories.rubric(session, project, **rubric)
    for number in range(n):
        ranking(session, project, k, f"Question number {number}?")
    return project


def stored(session: Session) -> dict[tuple[int, int], int | None]:
    """(text of A, text of B) -> live preference; of rankings of the same texts the one that was answered last."""
    session.rollback()
    ranked = session.scalars(select(Completion).where(Completion.text.startswith("Text ")))
    texts = {row.id: int(row.text.removeprefix("Text ")) for row in ranked}
    rows = session.execute(
        select(Comparison.completion_a_id, Comparison.completion_b_id, Judgment.preference)
        .join(Judgment, Judgment.comparison_id == Comparison.id)
        .where(Judgment.superseded_at.is_(None))
        .order_by(Judgment.id)
    )
    return {(texts[a], texts[b]): preference for a, b, preference in rows}


def letters(page: Page) -> dict[int, str]:
    """Number of the text -> letter under which it is shown."""
    shown = page.locator(".response")
    return {
        int(re.search(r"Text (\d)", text)[1]): re.search(r"Response ([A-I])", text)[1]  # type: ignore[index]
        for text in shown.all_inner_texts()
    }


def chip(page: Page, letter: str) -> Locator:
    return page.locator(f".chip[data-letter={letter}]")


@pytest.mark.parametrize("k", [3, 9])
def test_ranking_by_digits(session: Session, open_page: OpenPage, k: int) -> None:
    page = open_desk(open_page, project_with_rankings(session, k))
    wait_for_next(page)
    expect(page.locator(".response")).to_have_count(k)
    number_at = {letter: number for number, letter in letters(page).items()}
    # In the order shown, each response gets the number of its text as its rank.
    for letter in "ABCDEFGHI"[:k]:
        press(page, str(number_at[letter]))
    expect(page.locator("#announce")).to_have_text(
        f"Response {'ABCDEFGHI'[k - 1]} rank {number_at['ABCDEFGHI'[k - 1]]}."
    )
    order = "".join(page.locator(".order .chip").all_inner_texts())
    assert order == "".join(letters(page)[n] for n in range(1, k + 1))
    press(page, "Enter")
    expect(page.locator(".conversation")).to_contain_text("Question number 1?")
    expect(page.locator("h1")).to_be_focused()
    all_sent(page)
    said = stored(session)
    assert len(said) == k * (k - 1) // 2
    assert set(said.values()) == {-1}  # A is always the better ranked one
    assert session.scalars(select(Comparison.state).where(Comparison.id.in_(select(Judgment.comparison_id)))).all() == [
        "settled"
    ] * len(said)
    # One answer: one key and one time.
    assert sum(row.idempotency_key is not None for row in session.scalars(select(Judgment))) == 1


def test_ties_and_responses_without_a_rank(session: Session, open_page: OpenPage) -> None:
    page = open_desk(open_page, project_with_rankings(session, 4))
    press(page, "Enter")
    expect(page.locator("#announce")).to_have_text("Give at least one response its rank.")
    shown = letters(page)
    for number, rank in ((3, "1"), (1, "2"), (2, "2")):
        page.get_by_role("combobox", name=f"Rank of Response {shown[number]}").select_option(rank)
    press(page, "Escape", "Enter")
    expect(page.locator(".conversation")).to_contain_text("Question number 1?")
    all_sent(page)
    assert stored(session) == {(1, 2): 0, (1, 3): 1, (2, 3): 1, (1, 4): -1, (2, 4): -1, (3, 4): -1}


def test_two_without_a_rank_are_not_compared_and_undo_brings_the_ranks_back(
    session: Session, open_page: OpenPage
) -> None:
    page = open_desk(open_page, project_with_rankings(session, 4))
    shown = letters(page)
    page.get_by_role("combobox", name=f"Rank of Response {shown[2]}").select_option("1")
    press(page, "Enter")
    expect(page.locator(".conversation")).to_contain_text("Question number 1?")
    all_sent(page)
    said = {(1, 2): 1, (1, 3): None, (1, 4): None, (2, 3): -1, (2, 4): -1, (3, 4): None}
    assert stored(session) == said
    press(page, "u")
    expect(page.locator(".conversation")).to_contain_text("Question number 0?")
    assert letters(page) == shown
    ranks = [select.input_value() for select in page.get_by_role("combobox").all()]
    assert sorted(ranks) == ["", "", "", "1"]
    assert stored(session) == {}
    press(page, "Enter")
    expect(page.locator(".conversation")).to_contain_text("Question number 1?")
    all_sent(page)
    assert stored(session) == said


def drag(page: Page, what: Locator, onto: Locator) -> None:
    start, end = what.bounding_box(), onto.bounding_box()
    assert start
    assert end
    page.mouse.move(start["x"] + start["width"] / 2, start["y"] + start["height"] / 2)
    page.mouse.down()
    page.mouse.move(end["x"] + end["width"] / 2, end["y"] + end["height"] / 2, steps=5)
    page.mouse.up()


def test_ranking_by_dragging(session: Session, open_page: OpenPage) -> None:
    page = open_desk(open_page, project_with_rankings(session, 4))
    shown = letters(page)
    expect(page.locator(".order-none .chip")).to_have_count(4)
    drag(page, chip(page, shown[1]), page.locator(".order-gap").first)
    drag(page, chip(page, shown[2]), page.locator(".order-gap").first)  # before the first
    drag(page, chip(page, shown[3]), page.locator(".order-group").last)  # level with the last
    drag(page, chip(page, shown[4]), page.locator(".order-gap").last)
    groups = page.locator(".order-group")
    expect(groups).to_have_count(3)
    expect(groups.nth(0)).to_have_text(shown[2])
    assert sorted(groups.nth(1).inner_text().split()) == sorted([shown[1], shown[3]])
    drag(page, chip(page, shown[4]), page.locator(".order-none"))
    expect(groups).to_have_count(2)
    expect(page.get_by_role("combobox", name=f"Rank of Response {shown[3]}")).to_have_value("2")
    page.get_by_role("button", name="Submit").click()
    expect(page.locator(".conversation")).to_contain_text("Question number 1?")
    all_sent(page)
    assert stored(session) == {(1, 2): 1, (1, 3): 0, (1, 4): -1, (2, 3): -1, (2, 4): -1, (3, 4): -1}


def test_a_card_that_came_back_is_dragged_as_before(session: Session, open_page: OpenPage) -> None:
    page = open_desk(open_page, project_with_rankings(session, 3))
    wait_for_next(page)
    press(page, "1", "Enter")
    expect(page.locator(".conversation")).to_contain_text("Question number 1?")
    all_sent(page)
    press(page, "u")
    expect(page.locator(".conversation")).to_contain_text("Question number 0?")
    press(page, "Enter")
    expect(page.locator(".conversation")).to_contain_text("Question number 1?")
    shown = letters(page)
    drag(page, chip(page, shown[1]), page.locator(".order-gap").first)
    drag(page, chip(page, shown[2]), page.locator(".order-gap").last)
    drag(page, chip(page, shown[1]), page.locator(".order-group").last)
    expect(page.locator(".order-group")).to_have_count(1)
    assert sorted(page.locator(".order-group").inner_text().split()) == sorted([shown[1], shown[2]])


def test_ranks_and_cannot_judge_exclude_each_other(session: Session, open_page: OpenPage) -> None:
    page = open_desk(open_page, project_with_rankings(session, 3, n=3))
    box = page.get_by_role("checkbox", name="Cannot judge")
    press(page, "1", "2", "3", "c")
    expect(page.get_by_role("combobox").first).to_be_disabled()
    expect(page.get_by_role("combobox").first).to_have_value("1")  # for whoever thinks again
    press(page, "c")
    expect(page.get_by_role("combobox").first).to_be_enabled()
    press(page, "c", "Enter")
    expect(page.locator(".conversation")).to_contain_text("Question number 1?")
    press(page, "c", "1", "2")
    expect(box).not_to_be_checked()
    press(page, "Enter")
    expect(page.locator(".conversation")).to_contain_text("Question number 2?")
    all_sent(page)
    said = session.scalars(select(Judgment.preference).order_by(Judgment.id)).all()
    assert [preference is None for preference in said] == [True] * 3 + [False] * 3


def test_a_rubric_without_ties_refuses_equal_ranks_and_the_card_comes_back(
    session: Session, open_page: OpenPage
) -> None:
    page = open_desk(open_page, project_with_rankings(session, 3, allow_tie=False))
    press(page, "1", "1", "2", "Enter")
    expect(page.locator(".desk-problem")).to_contain_text("This rubric has no tie.")
    expect(page.locator(".conversation")).to_contain_text("Question number 0?")
    assert [select.input_value() for select in page.get_by_role("combobox").all()] == ["1", "1", "2"]
    assert stored(session) == {}
    press(page, "1", "ArrowRight", "2", "3", "Enter")
    expect(page.locator(".conversation")).to_contain_text("Question number 1?")


def test_cannot_judge_a_ranking_and_without_javascript(session: Session, open_page: OpenPage) -> None:
    project = project_with_rankings(session, 3)
    page = open_desk(open_page, project, javascript=False)
    shown = letters(page)
    for number in (1, 2, 3):
        page.get_by_role("combobox", name=f"Rank of Response {shown[number]}").select_option(str(number))
    page.get_by_role("button", name="Submit").click()
    expect(page.locator(".conversation")).to_contain_text("Question number 1?")
    assert set(stored(session).values()) == {-1}
    page.get_by_role("checkbox", name="Cannot judge").check()
    page.get_by_role("button", name="Submit").click()
    expect(page.locator(".idle")).to_be_visible()
    assert list(stored(session).values()).count(None) == 3

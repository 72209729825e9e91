"""One card after another: what an answer says, loading ahead, skipping, and the keyboard alone."""

import re
from datetime import UTC, datetime, timedelta

from playwright.sync_api import Page, expect
from sqlalchemy import select, text, update
from sqlalchemy.orm import Session

from app.documents import DEFAULT_ASPECTS, DEFAULT_FLAGS
from app.models import Comparison, Lease, Project, Prompt
from tests import factories
from tests.browser.keys import press
from tests.browser.test_labeling import OpenPage, all_sent, judgments, open_desk, project_with, wait_for_next
from tests.waiting import wait_for

ASPECTS = [aspect.model_dump() for aspect in DEFAULT_ASPECTS]
FLAGS = [flag.model_dump() for flag in DEFAULT_FLAGS]


def rich_project(session: Session, n: int = 3) -> Project:
    project = factories.project(session, overlap=2)
    factories.rubric(session, project, aspects=ASPECTS, flags=FLAGS)
    for i in range(n):
        prompt = factories.prompt(session, project, f"Question number {i}?")
        factories.comparison(session, project, prompt=prompt, texts=(f"Alpha {i}", f"Beta {i}"))
    session.commit()
    return project


def live_leases(session: Session) -> list[int]:
    session.rollback()
    live = select(Lease.comparison_id).where(Lease.state == "live").order_by(Lease.comparison_id)
    return list(session.scalars(live))


def question(page: Page, number: int) -> None:
    expect(page.locator(".conversation")).to_contain_text(f"Question number {number}?")


# --- what an answer says ---------------------------------------------------------------------------------------------


def test_aspects_flags_and_what_is_beside_the_scale_by_keys(session: Session, open_page: OpenPage) -> None:
    project = rich_project(session, 4)
    page = open_desk(open_page, project)
    press(page, "6", "a", "1")
    expect(page.get_by_role("radiogroup", name="Which is better written?").locator(":focus")).to_have_count(1)
    press(page, "3")
    expect(page.get_by_role("radio", name="Second response better", exact=True)).to_be_focused()
    press(page, "f", "1", "3", "1", "Escape", "Enter")  # harmful set and cleared again
    question(page, 1)
    press(page, "b", "Enter")
    question(page, 2)
    press(page, "a", "2", "0", "c", "Enter")
    question(page, 3)
    press(page, "5", "b", "6", "Enter")  # another choice takes the place of the one before
    expect(page.locator(".idle")).to_be_visible()
    all_sent(page)

    first, second, third, fourth = judgments(session)
    sign = -1 if first.swapped else 1
    assert first.preference == 2 * sign
    assert first.aspects == {"factuality": -1 * sign, "style": 1 * sign}
    assert first.flags == ["broken"]
    assert (second.preference, second.both_bad) == (0, True)
    assert (third.preference, third.both_bad, third.aspects) == (None, False, {"factuality": 0})
    assert (abs(fourth.preference or 0), fourth.both_bad, fourth.aspects) == (2, False, {})
    assert [row.flagged for row in session.scalars(select(Comparison).order_by(Comparison.id))] == [
        True, False, False, False,
    ]  # fmt: skip


def test_a_long_conversation_shows_its_last_turn_and_the_system_prompt_on_demand(
    session: Session, open_page: OpenPage
) -> None:
    project = rich_project(session, 1)
    prompt = session.scalars(select(Prompt)).one()
    talk = [{"role": role, "content": f"{role} said {n}. " * 40} for n in range(9) for role in ("user", "assistant")]
    prompt.messages = [{"role": "system", "content": "Be terse."}, *talk, {"role": "user", "content": "And now?"}]
    session.commit()
    page = open_desk(open_page, project)
    expect(page.get_by_text("And now?")).to_be_in_viewport()
    expect(page.get_by_text("user said 0.").filter(visible=True)).not_to_be_in_viewport()
    expect(page.get_by_text("Be terse.")).to_be_hidden()
    press(page, "p")
    expect(page.get_by_text("Be terse.")).to_be_in_viewport()


def test_keys_without_control_can_be_switched_off(session: Session, open_page: OpenPage) -> None:
    project = rich_project(session)
    page = open_desk(open_page, project)
    press(page, "?")
    page.get_by_label("Use keys without Ctrl").uncheck()
    press(page, "Escape", "6", "b", "s")
    expect(page.locator("input[name=preference]:checked")).to_have_count(0)
    expect(page.locator(".skip-reasons")).to_be_hidden()
    page.reload()
    press(page, "6")
    expect(page.locator("input[name=preference]:checked")).to_have_count(0)
    press(page, "?")  # the way back
    page.get_by_label("Use keys without Ctrl").check()
    press(page, "Escape", "6")
    expect(page.locator("input[name=preference]:checked")).to_have_count(1)


def test_skipping_says_why(session: Session, open_page: OpenPage) -> None:
    project = rich_project(session)
    page = open_desk(open_page, project)
    wait_for_next(page)
    press(page, "s")
    expect(page.get_by_role("group", name="Why skip?")).to_be_visible()
    press(page, "Escape")
    expect(page.get_by_role("group", name="Why skip?")).to_be_hidden()
    expect(page.locator(".skip-menu summary")).to_be_focused()
    press(page, "s", "1")
    question(page, 1)
    expect(page.locator("h1")).to_be_focused()
    wait_for_next(page)
    press(page, "s", "4")
    page.keyboard.type("It is about me")
    press(page, "Enter")
    question(page, 2)
    all_sent(page)
    skipped = select(Lease.reason).where(Lease.state == "skipped").order_by(Lease.comparison_id)
    assert session.scalars(skipped).all() == ["too long", "It is about me"]
    assert judgments(session) == []


# --- loaded ahead ----------------------------------------------------------------------------------------------------


def test_the_next_card_is_leased_ahead_and_given_back_when_the_page_is_left(
    session: Session, open_page: OpenPage
) -> None:
    project = project_with(session, 4)
    ids = list(session.scalars(select(Comparison.id).order_by(Comparison.id)))
    page = open_desk(open_page, project)
    wait_for_next(page)
    assert live_leases(session) == ids[:2]
    second = page.context.new_page()
    second.goto(f"/projects/{project.slug}/label")
    wait_for_next(second)
    assert live_leases(session) == ids[:2]  # a second tab shows the same two
    second.close()

    press(page, "3", "Enter")
    question(page, 1)
    wait_for_next(page)
    all_sent(page)
    assert live_leases(session) == ids[1:3]
    page.goto(f"/projects/{project.slug}/label/mine")
    wait_for(lambda: live_leases(session) == ids[1:2], "what was loaded ahead being given back")
    page.goto(f"/projects/{project.slug}/label")
    question(page, 1)


def test_the_card_that_was_loaded_ahead_stays_when_the_answer_is_taken(session: Session, open_page: OpenPage) -> None:
    page = open_desk(open_page, project_with(session, 3))
    wait_for_next(page)
    press(page, "3", "Enter")
    question(page, 1)
    page.evaluate("document.querySelector('.task').id = 'the-same'")
    press(page, "e")
    all_sent(page)
    wait_for_next(page)
    expect(page.locator("#the-same")).to_be_visible()
    expect(page.locator("#rationale")).to_be_focused()
    expect(page.locator("[data-left]")).to_have_text("2")


def test_a_card_loaded_ahead_is_for_nobody_else(session: Session, open_page: OpenPage) -> None:
    project = project_with(session, 2)
    session.execute(text("UPDATE comparison SET overlap = 1"))
    session.commit()
    first = open_desk(open_page, project)
    wait_for_next(first)
    second = open_desk(open_page, project)
    expect(second.get_by_role("heading", name="The last comparisons are with other labelers")).to_be_visible()
    press(first, "3", "Enter")
    question(first, 1)
    press(first, "3", "Enter")
    expect(first.locator(".idle")).to_be_visible()
    all_sent(first)
    assert len(judgments(session)) == 2


def test_a_new_rubric_is_noticed_when_the_answer_is_sent(session: Session, open_page: OpenPage) -> None:
    project = project_with(session, 3)
    page = open_desk(open_page, project)
    wait_for_next(page)
    newer = factories.rubric(session, project, version=2, guideline="The new rule.")
    first = session.scalars(select(Comparison.id).order_by(Comparison.id)).first()
    session.execute(update(Lease).where(Lease.comparison_id == first).values(state="expired"))
    session.execute(update(Comparison).where(Comparison.id == first).values(rubric_id=newer.id))
    session.commit()
    press(page, "6", "e")
    page.keyboard.type("Kept")
    press(page, "Control+Enter")
    # The next card was there at once; then the refused one came back, with its answer still in the form.
    expect(page.locator(".desk-problem")).to_contain_text("A new version of the rubric applies")
    question(page, 0)
    expect(page.locator("#rationale")).to_have_value("Kept")
    expect(page.get_by_role("radio", name="Second response better", exact=True)).to_be_checked()
    expect(page.locator("h1")).to_be_focused()
    wait_for_next(page)
    press(page, "Enter")
    question(page, 1)
    all_sent(page)
    [judgment] = judgments(session)
    assert (judgment.rubric_id, judgment.rationale) == (newer.id, "Kept")


def test_a_form_that_is_refused_before_it_is_read_comes_back_with_the_reason(
    session: Session, open_page: OpenPage
) -> None:
    page = open_desk(open_page, project_with(session, 3))
    wait_for_next(page)
    page.locator("form.answer").evaluate(
        "form => form.insertAdjacentHTML('beforeend', '<input name=strength value=9>')"
    )
    press(page, "6", "Enter")
    expect(page.locator("#messages")).to_contain_text("strength")
    question(page, 0)
    expect(page.get_by_role("radio", name="Second response better", exact=True)).to_be_checked()
    assert judgments(session) == []
    press(page, "Enter")
    question(page, 1)


def test_a_card_whose_time_ran_out_unseen_is_replaced(session: Session, open_page: OpenPage) -> None:
    project = project_with(session, 3)
    session.execute(text("UPDATE comparison SET overlap = 1"))
    session.commit()
    page = open_desk(open_page, project)
    wait_for_next(page)
    second = session.scalars(select(Comparison.id).order_by(Comparison.id)).all()[1]
    session.execute(update(Lease).where(Lease.comparison_id == second).values(state="expired"))
    factories.judgment(session, session.get_one(Comparison, second), preference=1)  # somebody else was faster
    session.execute(update(Comparison).where(Comparison.id == second).values(state="settled"))
    session.commit()
    press(page, "6", "Enter")
    question(page, 2)
    assert len(judgments(session)) == 2


def test_whoever_is_at_work_keeps_the_task(session: Session, open_page: OpenPage) -> None:
    project = project_with(session, 2)
    session.execute(text("UPDATE project SET lease_minutes = 4"))
    session.commit()
    page = open_page("labeler")
    page.clock.install()
    page.goto(f"/projects/{project.slug}/label")
    wait_for_next(page)
    soon = datetime.now(UTC) + timedelta(seconds=5)
    session.execute(update(Lease).values(expires_at=soon))
    session.commit()
    press(page, "j")
    with page.expect_response(re.compile("/label/here$")) as here:
        page.clock.run_for(61_000)
    assert len(here.value.json()["live"]) == 2
    session.rollback()
    assert all(lease.expires_at > soon + timedelta(minutes=3) for lease in session.scalars(select(Lease)))
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.clock.run_for(200_000)  # nobody there: nothing is renewed
    assert not [url for url in requests if url.endswith("/here")]


# --- the keyboard alone ----------------------------------------------------------------------------------------------


def test_everything_is_reached_by_tab_and_focus_is_never_lost(session: Session, open_page: OpenPage) -> None:
    project = rich_project(session)
    page = open_desk(open_page, project)
    wait_for_next(page)
    press(page, "6", "Enter")
    question(page, 1)
    assert page.evaluate("document.activeElement.id") == "task-title"
    wanted = page.locator("#desk").evaluate(
        """desk => [...desk.querySelectorAll('a[href], button, summary, textarea, [tabindex="0"]')]
            .filter(e => e.checkVisibility()).length"""
    )
    groups = page.locator("#desk").evaluate(
        "desk => new Set([...desk.querySelectorAll('input[type=radio]')].map(e => e.name)).size"
        " + desk.querySelectorAll('input[type=checkbox]').length"
    )
    reached = set()
    for _ in range(wanted + groups + 5):
        press(page, "Tab")
        inside = page.evaluate(
            "document.activeElement.closest('#desk')"
            " && [...document.querySelectorAll('#desk *')].indexOf(document.activeElement)"
        )
        if inside is not None:
            reached.add(inside)
    assert len(reached) == wanted + groups


def test_what_has_the_focus_is_never_under_the_bar_of_a_phone(session: Session, open_page: OpenPage) -> None:
    page = open_desk(open_page, rich_project(session), width=390)
    seen = []
    for _ in range(20):
        press(page, "Tab")
        found = page.evaluate(
            """() => { const focused = document.activeElement, bar = document.querySelector(".answer-bar");
            if (!focused.closest(".task") || bar.contains(focused)) return null;
            const to = (focused.closest("label") ?? focused).getBoundingClientRect();
            return [focused.name || focused.className, to.top < bar.getBoundingClientRect().top && to.bottom > 0]; }"""
        )
        if found:
            seen.append(found)
    assert {name for name, _visible in seen} >= {"aspect:factuality", "aspect:style", "flags"}
    assert [name for name, visible in seen if not visible] == []

"""Calibration items stay unnoticed (remaining counts, empty queues, new rubrics), and admins can manage them."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.errors import Conflict, Gone, InvalidInput, NotFound
from app.labeling import answers, assigning, calibration, history, leases, outlook, queries
from app.members import service as members
from app.models import AuditEvent, Comparison, Judgment, Lease, ProjectLabeler
from tests import factories
from tests.labeling.desk import end_overdue, judge, run_out, take
from tests.labeling.test_mixing import (
    ALWAYS,
    age_answers,
    answered,
    calibrate,
    item,
    ordinary,
    purpose,
    repeating,
)

# --- nothing tells ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["calibration", "repeat"])
def test_what_is_left_does_not_tell_what_was_mixed_in(session: Session, kind: str) -> None:
    """Of four cards the second and the fourth are mixed in, or none is. Done, skipped and taken back, each makes what
    is left one less or more, so that the words change at the same card."""

    def counts(*, mixed_in: bool) -> list[int]:
        project, labeler, _ = repeating(session, gap=1, n=4)
        ordinary(session, project, 30)
        seen = []

        def look() -> None:
            seen.append(outlook.progress(session, project, labeler).left)

        for n in range(4):
            rate = 1 if n % 2 and mixed_in else 0.000001
            settings = {"calibration": {"rate": rate, "least": 1000}, "repeat": {"rate": rate, "gap": 1}}
            project.labeling = {"repeats" if kind == "repeat" else kind: settings[kind]}
            item(session, project)
            task = take(session, project, labeler)
            assert purpose(session, task) == (kind if rate == 1 else "train")
            look()
            if n == 3:
                leases.skip(session, project, task.lease_id, labeler, "unclear")
                look()
                # Skipped or not, it can be put on the desk again.
                assert take(session, project, labeler, again=task.lease_id).position == task.position
                look()
            judge(session, project, labeler, task)
            look()
            answers.undo(session, project, labeler)
            look()
            judge(session, project, labeler, task)
        return seen

    plain = counts(mixed_in=False)
    assert counts(mixed_in=True) == plain
    first = plain[0]
    assert plain == [first - n for n in (0, 1, 0, 1, 2, 1, 2, 3, 2, 3, 4, 3, 4, 3)]


@pytest.mark.parametrize("way", ["answered", "taken back", "skipped"])
def test_no_day_begins_between_two_cards_that_tell_what_they_are(
    session: Session, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """The second card is given out on one day; on the next day it is answered, taken back and skipped."""

    def counts(kind: str) -> list[int]:
        project, labeler, _ = repeating(session, gap=1, n=2)
        ordinary(session, project, 30)
        item(session, project)
        on = {"calibration": {"calibration": {"rate": 1, "least": 1000}}, "repeat": {"repeats": {"rate": 1, "gap": 1}}}
        off = {"calibration": {"rate": 0.000001, "least": 1000}}
        project.labeling = on.get(kind, off)
        task = take(session, project, labeler)
        assert purpose(session, task) == kind
        project.labeling = off
        if way == "taken back":
            judge(session, project, labeler, task)
        elif way == "skipped":
            leases.skip(session, project, task.lease_id, labeler, "")
        session.commit()
        now = datetime.now(UTC)
        # What can still be taken back was done today.
        monkeypatch.setattr(queries, "today", lambda _: now - timedelta(hours=way == "taken back"))
        seen = [outlook.progress(session, project, labeler).left]
        if way == "taken back":
            answers.undo(session, project, labeler)
        else:
            task = take(session, project, labeler, again=task.lease_id)
        for step in (lambda: judge(session, project, labeler, task), lambda: answers.undo(session, project, labeler),
                     lambda: leases.skip(session, project, task.lease_id, labeler, "")):  # fmt: skip
            seen.append(outlook.progress(session, project, labeler).left)
            step()
            session.commit()
        seen.append(outlook.progress(session, project, labeler).left)
        return [after - before for before, after in pairwise(seen)]

    assert counts("calibration") == counts("repeat") == counts("train")


@pytest.mark.parametrize(
    ("now", "since"),
    [("2026-03-02 00:59", "2026-03-01"), ("2026-03-02 01:00", "2026-03-02"), ("2026-03-02 23:59", "2026-03-02")],
)
def test_a_day_begins_when_nothing_of_the_one_before_can_be_changed(now: str, since: str) -> None:
    moment = datetime.fromisoformat(now).replace(tzinfo=UTC)
    assert queries.today(moment) == datetime.fromisoformat(since).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("left", "mixed", "to_go"),
    [
        (0, True, "0"),
        (1, True, "about 20 or fewer"),
        (20, True, "about 20 or fewer"),
        (21, True, "more than 20"),
        (100, True, "more than 50"),
        (499, True, "more than 100"),
        (36, False, "36"),
        (500, False, "500+"),
        (500, True, "500+"),
    ],
)
def test_what_is_left_in_words(left: int, mixed: bool, to_go: str) -> None:
    assert outlook.Progress(3, left, mixed).to_go == to_go


@pytest.mark.parametrize("kind", ["calibration", "repeat", "train"])
@pytest.mark.parametrize("how", ["closed the page", "time ran out", "skipped"])
def test_the_last_task_that_is_left_is_work_whatever_it_is(session: Session, how: str, kind: str) -> None:
    """Labelers who finish everything after a card, and give that card back, get it again from the start page."""
    project, labeler = factories.project(session, overlap=1), factories.user(session)
    for n in range(5):
        comparison = factories.comparison(session, project)
        if n < 2:
            factories.judgment(session, comparison, preference=2, labeler_id=labeler.id)
    item(session, project)
    on = {"calibration": {"calibration": {"rate": 1, "least": 1000}}, "repeat": {"repeats": {"rate": 1, "gap": 1}}}
    project.labeling = on.get(kind, {})
    left = take(session, project, labeler)
    assert purpose(session, left) == kind
    project.labeling = {"calibration": {"rate": 0.000001, "least": 1000}}
    while task := assigning.next_task(session, project, labeler, beside=left.lease_id):
        judge(session, project, labeler, task)
    if how == "closed the page":
        leases.release(session, project, left.lease_id, labeler)
    elif how == "skipped":
        leases.skip(session, project, left.lease_id, labeler, "")
    else:
        run_out(session, left.lease_id)
        end_overdue(session)
    session.commit()
    assert outlook.project_with_work(session, labeler) == project.slug
    assert take(session, project, labeler).position == left.position


@pytest.mark.parametrize("kind", ["calibration", "repeat", "train"])
def test_the_card_of_somebody_who_left_is_there_again_when_they_are_back(session: Session, kind: str) -> None:
    project, labeler, _ = repeating(session, gap=1, n=2)
    admin = factories.user(session, "admin")
    item(session, project)
    on = {"calibration": {"calibration": {"rate": 1, "least": 1000}}, "repeat": {"repeats": {"rate": 1, "gap": 1}}}
    project.labeling = on.get(kind, {"calibration": {"rate": 0.000001, "least": 1000}})
    left = take(session, project, labeler)
    assert purpose(session, left) == kind
    members.remove(session, project, admin, labeler.id)
    assert assigning.next_task(session, project, labeler) is None
    members.add(session, project, admin, str(labeler.email), ["labeler"])
    back = take(session, project, labeler)
    assert (back.lease_id, back.responses) == (left.lease_id, left.responses)


@pytest.mark.parametrize("how", ["closed the page", "time ran out"])
@pytest.mark.parametrize("kind", ["calibration", "train"])
def test_a_task_that_went_back_unanswered_comes_again_whatever_it_is(session: Session, how: str, kind: str) -> None:
    """However often labelers open the page, no task changes place, so they cannot find the items."""
    labeling = {"calibration": {"rate": 1.0 if kind == "calibration" else 0.000001, "least": 1000}}
    project, labeler = factories.project(session, labeling=labeling), factories.user(session)
    ordinary(session, project, 3)
    for _ in range(6):
        item(session, project)
    first = take(session, project, labeler)
    assert purpose(session, first) == kind
    project.labeling = {"calibration": {"rate": 0.5, "least": 1000}}
    for _ in range(12):  # by chance it was another one each second time
        if how == "closed the page":
            leases.release(session, project, first.lease_id, labeler)
        else:
            run_out(session, first.lease_id)
        again = take(session, project, labeler)
        assert (again.lease_id, again.position) == (first.lease_id, first.position)


@pytest.mark.parametrize("kind", ["calibration", "repeat", "train"])
@pytest.mark.parametrize("how", ["closed the page", "time ran out", "skipped"])
def test_a_task_that_others_would_have_taken_meanwhile_does_not_come_again(
    session: Session, how: str, kind: str
) -> None:
    """Nobody else takes an item. If it came again, labelers who leave a card and return later would recognise it."""
    project, labeler = factories.project(session, overlap=1), factories.user(session)
    off = {"calibration": {"rate": 0.000001, "least": 1000}}
    on = {"calibration": {"calibration": {"rate": 1, "least": 1000}}, "repeat": {"repeats": {"rate": 1, "gap": 1}}}
    for n in range(6):
        comparison = factories.comparison(session, project)
        if n < 2:
            factories.judgment(session, comparison, preference=2, labeler_id=labeler.id)
    item(session, project)
    project.labeling = on.get(kind, off)
    left = take(session, project, labeler)
    assert purpose(session, left) == kind
    project.labeling = off
    if how == "closed the page":
        leases.release(session, project, left.lease_id, labeler)
    elif how == "skipped":
        leases.skip(session, project, left.lease_id, labeler, "")
    else:
        run_out(session, left.lease_id)
    session.commit()  # a later moment
    other = factories.user(session)
    taken = take(session, project, other)
    judge(session, project, other, taken)
    session.commit()
    assert (taken.position == left.position) == (kind == "train")
    with pytest.raises(Gone, match="other labelers judged it"):
        judge(session, project, labeler, left)
    assert take(session, project, labeler, again=left.lease_id).position != left.position
    seen = set()
    while task := assigning.next_task(session, project, labeler):
        seen.add(task.position.comparison_id)
        judge(session, project, labeler, task)
    assert left.position.comparison_id not in seen
    assert len(seen) == 3


@pytest.mark.parametrize("kinds", ["ti", "it", "ii", "tt"])
def test_two_tasks_that_went_back_come_again_in_their_order(session: Session, kinds: str) -> None:
    """If items came first, a change of order would reveal the item."""
    project, labeler = factories.project(session), factories.user(session)
    ordinary(session, project, 3)
    for _ in range(6):
        item(session, project)
    given: list[queries.Task] = []
    for kind in kinds:
        project.labeling = {"calibration": {"rate": 1.0 if kind == "i" else 0.000001, "least": 1000}}
        given.append(take(session, project, labeler, beside=given[0].lease_id if given else None))
        assert purpose(session, given[-1]) == {"i": "calibration", "t": "train"}[kind]
        session.commit()  # so that each has a time of its own
    project.labeling = {"calibration": {"rate": 0.5, "least": 1000}}
    factories.comparison(session, project, overlap=100, priority=1)  # meanwhile something urgent has come
    for _ in range(6):
        for n, task in enumerate(given):
            run_out(session, task.lease_id, timedelta(minutes=60 - n))
        for n, task in enumerate(given):
            again = take(session, project, labeler, beside=given[0].lease_id if n else None)
            assert again.lease_id == task.lease_id
            session.commit()


def test_answers_that_were_all_taken_back_come_again_in_their_order(session: Session) -> None:
    """Each undo gives back the card that was loaded ahead, so many cards can be seen in a moment."""
    project, labeler, _ = repeating(session, gap=1, n=12)
    ordinary(session, project, 40)
    for _ in range(12):
        item(session, project)
    given = []
    for n in range(30):
        project.labeling = {
            "calibration": {"rate": [1.0, 0.0, 0.000001][n % 3], "least": 1000},
            "repeats": {"rate": [0.0, 1.0, 0.0][n % 3], "gap": 1},
        }
        task = take(session, project, labeler)
        given.append(task.lease_id)
        judge(session, project, labeler, task)
        session.commit()
    kinds = select(Comparison.purpose).join(Lease).where(Lease.id.in_(given))
    assert Counter(session.scalars(kinds)) == {"calibration": 10, "repeat": 10, "train": 10}
    for _ in given:
        answers.undo(session, project, labeler)
        session.commit()
    again = []
    for _ in given:
        task = take(session, project, labeler)
        again.append(task.lease_id)
        judge(session, project, labeler, task)
        session.commit()
    assert again == given


def test_where_nothing_else_is_left_nothing_is_mixed_in(session: Session) -> None:
    """Repeated looks at an empty queue bring no items: a card that came then would have to be one."""
    project, labeler = factories.project(session, overlap=1, labeling=ALWAYS), factories.user(session)
    item(session, project)
    assert [assigning.next_task(session, project, labeler) for _ in range(5)] == [None] * 5
    project, labeler, _ = repeating(session, gap=1, n=4)
    judge(session, project, labeler, take(session, project, labeler))
    session.execute(update(Comparison).where(Comparison.overlap == 100).values(state="withdrawn"))
    assert assigning.next_task(session, project, labeler) is None
    assert session.scalar(select(func.count()).where(Comparison.purpose == "repeat")) == 1


def test_among_what_was_skipped_nothing_is_mixed_in(session: Session) -> None:
    """Labelers who have only familiar cards before them would see which one is new."""
    project, labeler = factories.project(session, overlap=1), factories.user(session)
    skipped = {factories.comparison(session, project).id for _ in range(3)}
    for _ in skipped:
        task = take(session, project, labeler)
        leases.skip(session, project, task.lease_id, labeler, "unclear")
        session.commit()
    project.labeling = ALWAYS
    item(session, project)
    again = []
    while (task := assigning.next_task(session, project, labeler)) is not None:
        again.append(task.position.comparison_id)
        judge(session, project, labeler, task)
    assert set(again) == skipped


def test_calibration_and_repeats_each_get_their_share(session: Session) -> None:
    """One draw decides: half of all tasks and the other half, not a half of the rest."""
    project, labeler, _ = repeating(session, gap=1, n=60)
    project.labeling = {"repeats": {"rate": 0.5, "gap": 1}, "calibration": {"rate": 0.5, "least": 1000}}
    for _ in range(25):
        item(session, project)
    kinds = Counter[str]()
    for _ in range(25):  # so few that repeats cannot run out: they are drawn from the last 50 answers, of any kind
        task = take(session, project, labeler)
        kinds[purpose(session, task)] += 1
        judge(session, project, labeler, task)
    assert kinds["train"] == 0
    assert 2 <= kinds["repeat"] <= 23  # by chance outside twice in a million


def test_a_skipped_item_comes_back_last_as_anything_skipped(session: Session) -> None:
    project, labeler = factories.project(session, overlap=1, labeling=ALWAYS), factories.user(session)
    measured, usual = item(session, project), factories.comparison(session, project)
    task = take(session, project, labeler)
    assert task.position.comparison_id == measured.id
    leases.skip(session, project, task.lease_id, labeler, "unclear")
    session.commit()
    task = take(session, project, labeler)
    assert task.position.comparison_id == usual.id
    judge(session, project, labeler, task)
    back = take(session, project, labeler)
    assert back.position.comparison_id == measured.id
    answered(session, project, labeler, back, 2)
    assert assigning.next_task(session, project, labeler) is None


def test_the_history_does_not_offer_to_change_an_item_for_ever(session: Session) -> None:
    project, labeler = factories.project(session, overlap=1, labeling=ALWAYS), factories.user(session)
    item(session, project)
    factories.comparison(session, project)
    for _ in range(2):
        judge(session, project, labeler, take(session, project, labeler))
    session.commit()
    assert [row.can_change for row in history.mine(session, project, labeler, None).rows] == [True, True]
    age_answers(session)
    assert [row.can_change for row in history.mine(session, project, labeler, None).rows] == [False, False]


def test_items_of_two_batches_are_met_in_different_orders(session: Session) -> None:
    """Their ids have a large gap: a search from a random id would start at the first item of the second batch."""
    project = factories.project(session, labeling=ALWAYS)
    ordinary(session, project, 1)
    item(session, project)
    session.execute(select(func.setval(func.pg_get_serial_sequence("comparison", "id"), 10**12)))
    for _ in range(6):
        item(session, project)
    firsts = {take(session, project, factories.user(session)).position.comparison_id for _ in range(12)}
    assert len(firsts) > 2  # of six; only two by chance three times in a hundred thousand


# --- a new rubric version --------------------------------------------------------------------------------------------


def test_under_a_new_rubric_an_item_goes_on_as_a_copy(session: Session) -> None:
    """Its card would be the only one with the old guideline. Labelers who saw it before do not see it again."""
    project = factories.project(session, labeling=ALWAYS)
    first, second, third, fourth = (factories.user(session) for _ in range(4))
    ordinary(session, project, 1)
    old = item(session, project, gold=3)
    answered(session, project, first, take(session, project, first), 1)
    newest = factories.rubric(session, project, version=2, strengths=1)
    task = take(session, project, second)
    copy = session.get_one(Comparison, task.position.comparison_id)
    assert copy.id != old.id
    assert (copy.rubric_id, copy.gold, copy.purpose, copy.repeat_of_id) == (newest.id, 1, "calibration", old.id)
    assert (copy.completion_a_id, copy.completion_b_id) == (old.completion_a_id, old.completion_b_id)
    answered(session, project, second, task, 1)
    assert purpose(session, take(session, project, first)) == "train"
    assert take(session, project, third).position.comparison_id == copy.id  # one copy for all
    factories.rubric(session, project, version=3)
    again = session.get_one(Comparison, take(session, project, fourth).position.comparison_id)
    assert (again.repeat_of_id, again.id > copy.id) == (old.id, True)
    assert purpose(session, take(session, project, second)) == "train"


def test_an_item_nobody_has_begun_takes_the_newest_rubric_itself(session: Session) -> None:
    project, labeler = factories.project(session, labeling=ALWAYS), factories.user(session)
    ordinary(session, project, 1)
    measured = item(session, project)
    newest = factories.rubric(session, project, version=2)
    task = take(session, project, labeler)
    assert (task.position.comparison_id, task.rubric.id) == (measured.id, newest.id)


def test_a_tie_is_no_known_answer_where_the_new_rubric_has_none(session: Session) -> None:
    project, labeler = factories.project(session, labeling=ALWAYS), factories.user(session)
    ordinary(session, project, 1)
    item(session, project, gold=0)
    answered(session, project, labeler, take(session, project, labeler), 0)
    factories.rubric(session, project, version=2, allow_tie=False)
    assert purpose(session, take(session, project, factories.user(session))) == "train"


# --- retiring, bringing back, correcting -----------------------------------------------------------------------------


def test_a_corrected_answer_counts_for_all_who_answered_and_is_written_down(session: Session) -> None:
    project, labeler = factories.project(session, labeling=ALWAYS), factories.user(session)
    admin = factories.user(session, "admin")
    calibrate(session, project, labeler, [True, True, True, False, False])  # 3 of 5: paused
    assert outlook.idle(session, project, labeler).reason == "paused"
    assert calibration.paused_no_longer_rightly(session, project) == []
    missed = session.scalars(
        select(Comparison)
        .join(Judgment, Judgment.comparison_id == Comparison.id)
        .where(Comparison.gold > 0, Judgment.preference < 0)
    ).all()
    assert len(missed) == 2
    calibration.correct(session, project, missed[0].id, -1, admin)
    assert missed[0].gold == -1
    assert calibration.paused_no_longer_rightly(session, project) == [labeler]  # 4 of 5
    event = session.scalars(select(AuditEvent).where(AuditEvent.action == "calibration.corrected")).one()
    assert event.details == {"item_id": missed[0].id, "before": 2, "gold": -1}
    with pytest.raises(InvalidInput, match="scale"):
        calibration.correct(session, project, missed[0].id, 4, admin)
    with pytest.raises(NotFound):
        calibration.correct(session, factories.project(session), missed[0].id, 1, admin)


def test_retiring_and_bringing_back_take_every_version_along(session: Session) -> None:
    project, admin = factories.project(session, labeling=ALWAYS), factories.user(session, "admin")
    usual, old = ordinary(session, project, 1), item(session, project)
    for version in (1, 2):
        labeler = factories.user(session)
        answered(session, project, labeler, take(session, project, labeler), 1)
        factories.rubric(session, project, version=version + 1)
    copy = session.scalars(select(Comparison).where(Comparison.repeat_of_id == old.id)).one()
    calibration.retire(session, project, copy.id, admin)
    assert (old.state, copy.state) == ("withdrawn", "withdrawn")
    assert take(session, project, factories.user(session)).position.comparison_id == usual.id
    calibration.retire(session, project, copy.id, admin)  # twice changes nothing
    calibration.bring_back(session, project, copy.id, admin)
    assert (old.state, copy.state) == ("open", "open")
    newest = take(session, project, factories.user(session)).position.comparison_id
    assert session.get_one(Comparison, newest).repeat_of_id == old.id
    actions = session.scalars(select(AuditEvent.action).order_by(AuditEvent.id)).all()
    assert actions == ["calibration.retired", "calibration.brought_back"]


def test_two_items_of_one_comparison_are_not_used_at_once(session: Session) -> None:
    project, admin = factories.project(session, overlap=1), factories.user(session, "admin")
    labeler = factories.user(session)
    original = factories.comparison(session, project)
    judge(session, project, labeler, take(session, project, labeler))
    session.refresh(original)
    wrong = calibration.make_calibration(session, project, original.id, -1, admin)
    calibration.retire(session, project, wrong.id, admin)
    right = calibration.make_calibration(session, project, original.id, 1, admin)
    with pytest.raises(Conflict, match=f"Item {right.id}"):
        calibration.bring_back(session, project, wrong.id, admin)
    with pytest.raises(Conflict, match=f"Item {right.id}"):
        calibration.correct(session, project, wrong.id, 2, admin)
    project.labeling = ALWAYS
    ordinary(session, project, 1)
    calibration.retire(session, project, right.id, admin)
    calibration.bring_back(session, project, wrong.id, admin)
    assert take(session, project, factories.user(session)).position.comparison_id == wrong.id
    with pytest.raises(Conflict, match="already"):
        calibration.make_calibration(session, project, original.id, 1, admin)


# --- pausing ---------------------------------------------------------------------------------------------------------


def test_a_window_smaller_than_what_is_waited_for_still_pauses(session: Session) -> None:
    labeling = {"calibration": {"rate": 1, "least": 8, "window": 5, "threshold": 0.7}}
    project, labeler = factories.project(session, labeling=labeling), factories.user(session)
    calibrate(session, project, labeler, [False] * 7)
    assert outlook.idle(session, project, labeler).reason != "paused"
    calibrate(session, project, labeler, [False])
    assert outlook.idle(session, project, labeler).reason == "paused"


def test_whoever_is_paused_gives_back_what_they_hold_and_keeps_nothing_by_staying(session: Session) -> None:
    """An open page reports regularly that its labeler is there."""
    project, labeler = factories.project(session, overlap=1), factories.user(session)
    held = factories.comparison(session, project)
    task = take(session, project, labeler)
    session.add(ProjectLabeler(project_id=project.id, labeler_id=labeler.id, state="paused", reason="Ask Ada."))
    session.flush()
    assert leases.renew(session, project, labeler) == []
    assert assigning.next_task(session, project, labeler) is None
    assert session.get_one(Lease, task.lease_id, populate_existing=True).state == "released"
    assert take(session, project, factories.user(session)).position.comparison_id == held.id


def test_an_answer_that_comes_late_takes_no_place_that_is_kept_for_somebody_else(session: Session) -> None:
    project = factories.project(session, overlap=1)
    late, expert = factories.user(session), factories.user(session)
    comparison = factories.comparison(session, project)
    task = take(session, project, late)
    run_out(session, task.lease_id)
    end_overdue(session)
    session.execute(update(Comparison).where(Comparison.id == comparison.id).values(labeler_id=expert.id))
    with pytest.raises(Gone):
        judge(session, project, late, task)
    judge(session, project, expert, take(session, project, expert))

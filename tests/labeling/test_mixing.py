"""Hidden tasks: calibration items, once for everybody, and repeats with swapped sides; and their consequences."""

import re
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from app.errors import Conflict, InvalidInput, NotFound
from app.labeling import answers, assigning, calibration, history, outlook, recusal, settling
from app.labeling.queries import Task
from app.models import AuditEvent, Comparison, Judgment, Lease, Project, ProjectLabeler, User
from tests import factories
from tests.labeling.desk import end_overdue, fill, judge, run_out, take

ALWAYS = {"calibration": {"rate": 1, "least": 5, "window": 10, "threshold": 0.7}}


def item(session: Session, project: Project, gold: int = 2, **values: Any) -> Comparison:
    return factories.comparison(session, project, purpose="calibration", gold=gold, overlap=1, **values)


def ordinary(session: Session, project: Project, n: int = 60) -> Comparison:
    """Something is always left to judge; otherwise nothing is mixed in."""
    first = factories.comparison(session, project, overlap=100)
    fill(session, first, n - 1)
    return first


def answered(session: Session, project: Project, labeler: User, task: Task, preference: int) -> Judgment:
    """Judge with a preference in canonical order."""
    swapped = session.scalars(select(Lease.swapped).where(Lease.id == task.lease_id)).one()
    return judge(session, project, labeler, task, -preference if swapped else preference)


def purpose(session: Session, task: Task) -> str:
    return session.scalars(select(Comparison.purpose).where(Comparison.id == task.position.comparison_id)).one()


# --- calibration -----------------------------------------------------------------------------------------------------


def test_everybody_gets_every_item_once_at_a_rate_of_one_first(session: Session) -> None:
    project = factories.project(session, overlap=1, labeling=ALWAYS)
    items = {item(session, project).id for _ in range(4)}
    usual = ordinary(session, project, 1)
    orders = set()
    for _ in range(6):
        labeler = factories.user(session)
        seen = []
        for _ in items:
            task = take(session, project, labeler)
            seen.append(task.position.comparison_id)
            answered(session, project, labeler, task, 1)
        assert set(seen) == items
        orders.add(tuple(seen))
        if task := assigning.next_task(session, project, labeler):
            assert task.position.comparison_id == usual.id
            judge(session, project, labeler, task)
    assert len(orders) > 1  # they begin at a random one: all alike once in 4^5 times
    rows = session.execute(select(Comparison.state, Comparison.judgment_count).where(Comparison.id.in_(items))).all()
    assert {tuple(row) for row in rows} == {("open", 6)}


def test_more_than_a_thousand_labelers_can_be_measured(session: Session) -> None:
    """An ordinary comparison takes at most a thousand judgments."""
    project = factories.project(session, labeling=ALWAYS)
    measured = item(session, project)
    session.execute(text("SET LOCAL session_replication_role = replica"))
    session.execute(
        text("UPDATE comparison SET overlap = 1000, judgment_count = 1000 WHERE id = :id"), {"id": measured.id}
    )
    session.execute(text("SET LOCAL session_replication_role = DEFAULT"))
    labeler = factories.user(session)
    ordinary(session, project)
    judge(session, project, labeler, take(session, project, labeler))
    session.refresh(measured)
    assert (measured.judgment_count, measured.overlap) == (1001, 1001)


def test_items_come_at_about_their_rate_and_never_without_one(session: Session) -> None:
    labeling = {"calibration": {"rate": 0.3, "least": 1000}}
    project, labeler = factories.project(session, overlap=1, labeling=labeling), factories.user(session)
    ordinary(session, project, 120)
    for _ in range(120):
        item(session, project)
    counted: Counter[str] = Counter()
    for _ in range(120):
        task = take(session, project, labeler)
        counted[purpose(session, task)] += 1
        judge(session, project, labeler, task)
    assert 12 <= counted["calibration"] <= 62  # 36 in the mean, five standard deviations each way
    project.labeling = {}
    session.flush()
    assert purpose(session, take(session, project, labeler)) == "train"


def test_an_item_is_not_in_the_queue_and_nothing_counts_it_as_open(session: Session) -> None:
    project, labeler = factories.project(session), factories.user(session)
    item(session, project)
    assert assigning.next_task(session, project, labeler) is None
    assert outlook.idle(session, project, labeler).reason == "finished"
    assert outlook.progress(session, project, labeler).left == 0


def test_an_item_whose_time_ran_out_comes_again_and_to_others_meanwhile(session: Session) -> None:
    project = factories.project(session, labeling=ALWAYS)
    labeler, other = factories.user(session), factories.user(session)
    ordinary(session, project)
    measured = item(session, project)
    task = take(session, project, labeler)
    assert take(session, project, other).position.comparison_id == measured.id
    run_out(session, task.lease_id)
    assert take(session, project, labeler).position.comparison_id == measured.id
    end_overdue(session)
    session.refresh(measured)
    assert measured.lease_count == 2


@pytest.mark.parametrize(
    ("gold", "said", "right"), [(2, 1, True), (2, 3, True), (2, -1, False), (2, 0, False), (0, 0, True), (0, 1, False)]
)
def test_right_is_who_takes_the_side(session: Session, gold: int, said: int, right: bool) -> None:
    labeling = {"calibration": {"rate": 1, "least": 1, "threshold": 1}}
    project, labeler = factories.project(session, labeling=labeling), factories.user(session)
    ordinary(session, project)
    item(session, project, gold)
    answered(session, project, labeler, take(session, project, labeler), said)
    assert (outlook.idle(session, project, labeler).reason == "paused") is not right


def calibrate(session: Session, project: Project, labeler: User, rights: list[bool]) -> None:
    """Answer new items, each correctly or not, until paused."""
    ordinary(session, project, 1)
    for right in rights:
        item(session, project)
        task = assigning.next_task(session, project, labeler)
        if task is None:
            return
        answered(session, project, labeler, task, 1 if right else -1)
        session.commit()  # so that every answer has a time of its own


def test_a_labeler_below_the_threshold_is_paused_with_a_message_and_the_admin_told(session: Session) -> None:
    project, labeler = factories.project(session, labeling=ALWAYS), factories.user(session)
    calibrate(session, project, labeler, [True, False, True, False])
    assert session.scalar(select(func.count()).select_from(ProjectLabeler)) == 0  # four answers are too few
    calibrate(session, project, labeler, [True])  # 3 of 5 is below 0.7
    standing = session.scalars(select(ProjectLabeler)).one()
    assert (standing.state, standing.changed_by) == ("paused", None)
    assert assigning.next_task(session, project, labeler) is None
    idle = outlook.idle(session, project, labeler)
    assert idle.reason == "paused"
    assert "You were right on 3 of your last 5" in idle.message
    assert "70%" in idle.message
    event = session.scalars(select(AuditEvent).where(AuditEvent.action == "labeler.paused")).one()
    assert (event.details["labeler_id"], event.details["right"], event.details["answers"]) == (labeler.id, 3, 5)


def test_exactly_at_the_threshold_nobody_is_paused_and_only_the_window_counts(session: Session) -> None:
    labeling = {"calibration": {"rate": 1, "least": 5, "window": 10, "threshold": 0.7}}
    project, labeler = factories.project(session, labeling=labeling), factories.user(session)
    calibrate(session, project, labeler, [True] * 7 + [False] * 3)  # 7 of 10
    assert outlook.idle(session, project, labeler).reason != "paused"
    calibrate(session, project, labeler, [False])  # the first right one leaves the window: 6 of 10
    assert outlook.idle(session, project, labeler).reason == "paused"


def test_who_was_let_go_on_begins_anew(session: Session) -> None:
    project, labeler = factories.project(session, labeling=ALWAYS), factories.user(session)
    calibrate(session, project, labeler, [False] * 5)
    session.execute(update(ProjectLabeler).values(state="active", reason="", counted_from=func.now()))
    session.commit()
    calibrate(session, project, labeler, [True] * 4 + [False])
    assert outlook.idle(session, project, labeler).reason != "paused"
    calibrate(session, project, labeler, [False, False])  # 4 of 7
    assert outlook.idle(session, project, labeler).reason == "paused"


def test_who_was_paused_here_works_elsewhere(session: Session) -> None:
    project, labeler = factories.project(session, labeling=ALWAYS), factories.user(session)
    calibrate(session, project, labeler, [False] * 5)
    elsewhere = factories.project(session)
    factories.comparison(session, elsewhere)
    assert outlook.project_with_work(session, labeler) == elsewhere.slug


def test_a_decided_comparison_becomes_an_item_and_stays_what_it_was(session: Session) -> None:
    project = factories.project(session, overlap=1, labeling=ALWAYS)
    admin, judge_, fresh = factories.user(session, "admin"), factories.user(session), factories.user(session)
    original = factories.comparison(session, project)
    with pytest.raises(Conflict, match="not decided"):
        calibration.make_calibration(session, project, original.id, 1, admin)
    project.labeling = {}
    judge(session, project, judge_, take(session, project, judge_))
    session.refresh(original)
    assert original.state == "settled"
    with pytest.raises(InvalidInput, match="scale"):
        calibration.make_calibration(session, project, original.id, 4, admin)
    with pytest.raises(NotFound):
        calibration.make_calibration(session, factories.project(session), original.id, 1, admin)
    made = calibration.make_calibration(session, project, original.id, -2, admin)
    assert (made.gold, made.purpose, made.state) == (-2, "calibration", "open")
    assert {made.completion_a_id, made.completion_b_id} == {original.completion_a_id, original.completion_b_id}
    with pytest.raises(Conflict, match="already"):
        calibration.make_calibration(session, project, original.id, 1, admin)
    project.labeling = ALWAYS
    session.flush()
    usual = ordinary(session, project, 1)
    assert take(session, project, judge_).position.comparison_id == usual.id  # they have seen the pair
    assert take(session, project, fresh).position.comparison_id == made.id
    calibration.retire(session, project, made.id, admin)
    assert take(session, project, factories.user(session)).position.comparison_id == usual.id
    again = calibration.make_calibration(session, project, original.id, 1, admin)
    assert again.id != made.id
    actions = session.scalars(select(AuditEvent.action).order_by(AuditEvent.id)).all()
    assert actions == ["calibration.added", "calibration.retired", "calibration.added"]


def test_answers_to_a_retired_item_no_longer_count(session: Session) -> None:
    project, labeler = factories.project(session, labeling=ALWAYS), factories.user(session)
    admin = factories.user(session, "admin")
    calibrate(session, project, labeler, [False, True, True, True])
    wrong = session.scalars(select(Comparison).where(Comparison.gold.is_not(None)).order_by(Comparison.id)).first()
    assert wrong is not None
    calibration.retire(session, project, wrong.id, admin)
    calibrate(session, project, labeler, [False, True])  # 4 of the 5 that count
    assert outlook.idle(session, project, labeler).reason != "paused"


def test_how_long_an_answer_can_be_changed_does_not_tell_an_item(session: Session) -> None:
    """An item never closes. One comparison is closed by this answer, one by others' answers, and one waits for them."""
    project, labeler = factories.project(session, overlap=1, labeling=ALWAYS), factories.user(session)
    item(session, project)
    factories.comparison(session, project)
    shared, _waiting = (factories.comparison(session, project, overlap=2) for _ in range(2))
    given = [judge(session, project, labeler, take(session, project, labeler)) for _ in range(4)]
    factories.judgment(session, shared, preference=-3)
    settling.settle(session, [shared.id])
    session.commit()
    assert {answers.why_final(session, judgment) for judgment in given} == {""}
    assert [row.can_change for row in history.mine(session, project, labeler, None).rows] == [True] * 4
    age_answers(session)
    assert len({answers.why_final(session, judgment) for judgment in given} - {""}) == 1
    assert [row.can_change for row in history.mine(session, project, labeler, None).rows] == [False] * 4


def age_answers(session: Session) -> None:
    """Make all leases look as if they had been given out an hour earlier."""
    session.execute(text("SET LOCAL session_replication_role = replica"))
    session.execute(text("UPDATE judgment SET created_at = created_at - interval '1 hour'"))
    session.execute(text("SET LOCAL session_replication_role = DEFAULT"))


# --- repeats ---------------------------------------------------------------------------------------------------------


def repeating(session: Session, gap: int, n: int, **labeling: Any) -> tuple[Project, User, list[Judgment]]:
    """A project with as many repeats as possible, and a labeler who has judged n comparisons and has one more left."""
    project, labeler = factories.project(session, overlap=2), factories.user(session)
    given = []
    now = datetime.now(UTC)
    for k in range(n):
        comparison = factories.comparison(session, project, texts=("first", "second"))
        at = now - timedelta(minutes=n - k)
        values = {"labeler_id": labeler.id, "created_at": at, "swapped": bool(k % 2)}
        given.append(factories.judgment(session, comparison, preference=2, **values))
    factories.comparison(session, project, texts=("first", "second"), overlap=100)
    project.labeling = {"repeats": {"rate": 1, "gap": gap}} | labeling
    session.flush()
    return project, labeler, given


def test_a_repeat_shows_what_was_judged_the_other_way_round(session: Session) -> None:
    project, labeler, given = repeating(session, gap=2, n=4)
    before = {judgment.comparison_id: judgment for judgment in given}
    repeated = []
    for _ in range(2):
        task = take(session, project, labeler)
        repeat = session.get_one(Comparison, task.position.comparison_id)
        assert (repeat.purpose, repeat.labeler_id, repeat.overlap) == ("repeat", labeler.id, 1)
        assert repeat.repeat_of_id is not None
        original = session.get_one(Comparison, repeat.repeat_of_id)
        assert (repeat.completion_a_id, repeat.completion_b_id) == (original.completion_a_id, original.completion_b_id)
        lease = session.get_one(Lease, task.lease_id)
        assert lease.swapped is not before[original.id].swapped
        repeated.append(original.id)
        answered(session, project, labeler, task, 2)
        session.refresh(repeat)
        assert (repeat.state, repeat.agreement, repeat.consensus, repeat.p_b) == ("settled", None, None, None)
    # At first only the first two of four answers have two after them; the repeat's own answer makes it three.
    ids = [judgment.comparison_id for judgment in given]
    assert repeated[0] in ids[:2]
    assert repeated[1] in set(ids[:3]) - {repeated[0]}


def test_answers_to_repeats_are_answers_in_between(session: Session) -> None:
    project, labeler, given = repeating(session, gap=3, n=4)
    task = take(session, project, labeler)
    assert session.get_one(Comparison, task.position.comparison_id).repeat_of_id == given[0].comparison_id
    judge(session, project, labeler, task)
    session.commit()
    task = take(session, project, labeler)
    assert session.get_one(Comparison, task.position.comparison_id).repeat_of_id == given[1].comparison_id


@pytest.mark.parametrize(
    "reason", ["gap", "rubric", "ranking", "removed", "reviewed", "calibration", "imported", "cannot judge"]
)
def test_what_is_not_repeated(session: Session, reason: str) -> None:
    project, labeler, given = repeating(session, gap=3 if reason != "gap" else 4, n=4)
    first = given[0].comparison_id
    if reason == "rubric":
        factories.rubric(session, project, version=2)
    if reason == "removed":
        session.execute(text("UPDATE judgment SET superseded_at = now(), superseded_for = 'removed' WHERE id = 1"))
    if reason == "reviewed":
        recusal.recuse(session, first, labeler.id)
    if reason == "calibration":
        session.execute(update(Comparison).where(Comparison.id == first).values(purpose="calibration"))
    if reason in ("imported", "cannot judge"):
        column = "swapped" if reason == "imported" else "preference"
        session.execute(text("SET LOCAL session_replication_role = replica"))
        session.execute(text(f"UPDATE judgment SET {column} = NULL WHERE comparison_id = :c"), {"c": first})
        session.execute(text("SET LOCAL session_replication_role = DEFAULT"))
    if reason == "ranking":
        session.execute(text("INSERT INTO ranking (project_id, prompt_id, size) SELECT project_id, prompt_id, 3"
                             " FROM comparison WHERE id = :c"), {"c": first})  # fmt: skip
        session.execute(update(Comparison).where(Comparison.id == first).values(ranking_id=1))
    assert purpose(session, take(session, project, labeler)) == "train"


def test_a_repeat_left_on_the_desk_comes_back_the_same_way_round(session: Session) -> None:
    project, labeler, given = repeating(session, gap=1, n=2)
    task = take(session, project, labeler)
    run_out(session, task.lease_id)
    again = take(session, project, labeler)
    assert again.position.comparison_id == task.position.comparison_id
    assert again.lease_id == task.lease_id
    assert again.responses == task.responses
    assert session.get_one(Lease, again.lease_id).swapped is not given[0].swapped
    assert purpose(session, take(session, project, factories.user(session))) == "train"  # not the repeat


def test_nothing_on_the_page_tells_what_is_mixed_in(session: Session, sign_in: Callable[..., Any]) -> None:
    """The three pages differ only in texts and names that are random everywhere."""

    def page_of(kind: str) -> str:
        project, labeler, _ = repeating(session, gap=1, n=2)
        project.name, project.slug = "Project", f"project-{kind}"
        if kind == "calibration":
            project.labeling = ALWAYS
            item(session, project, texts=("first", "second"))
        elif kind == "train":
            project.labeling = {"calibration": {"rate": 1}}
        session.commit()
        html = sign_in(user=labeler).get(f"/projects/{project.slug}/label").text
        assert assigning.next_task(session, project, labeler) is not None
        opened = session.scalars(select(Lease.comparison_id).where(Lease.labeler_id == labeler.id)).one()
        assert session.get_one(Comparison, opened).purpose == kind
        session.commit()
        html = html.replace(project.slug, "SLUG").replace(labeler.name, "NAME").replace(str(labeler.email), "MAIL")
        html = re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "UUID", html)
        html = re.sub(r"[0-9a-f]{64}|[0-9a-f]{32}", "HASH", html)
        html = re.sub(r"\b(first|second)\b", "TEXT", html)
        return re.sub(r"\d+", "N", html)

    assert page_of("repeat") == page_of("train") == page_of("calibration")

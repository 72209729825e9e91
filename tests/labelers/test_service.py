"""A labeler's standing in a project, what labelers read about themselves, and all effects of a removal."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import Session

from app.access import gate
from app.artifacts import ArtifactStore
from app.datasets import queries as datasets_queries
from app.demonstrations import service as demonstrations
from app.demonstrations.forms import DecisionForm
from app.documents import Calibration, OwnFigures
from app.errors import Conflict, InvalidInput, NotFound
from app.labelers import group_queries, queries, service, views
from app.models import (
    AuditEvent,
    Comparison,
    DemonstrationTask,
    Judgment,
    LabelerGroup,
    Lease,
    ModelVersion,
    Project,
    ProjectLabeler,
    Prompt,
    RedTeamAttempt,
    Snapshot,
    SnapshotComparison,
    User,
)
from app.models.demonstration import REVIEW_STATES
from app.red_team import queries as queries_of_attempts
from app.red_team import service as attempts_service
from app.red_team.forms import AcceptForm, RatingForm
from app.rounds import queries as queries_of_rounds
from app.rounds import snapshot_queries
from tests import factories
from tests.labelers.scenes import Habit, judged
from tests.red_team import attempts as red_team
from tests.rounds.loop import freeze, freeze_demonstrations, pair_rows


@pytest.fixture
def project(session: Session) -> Project:
    return factories.project(session, overlap=3)


@pytest.fixture
def admin(session: Session) -> User:
    return factories.user(session, "admin")


def said(session: Session, project: Project, *who: tuple[User, int | None], **values: object) -> Comparison:
    given = {"overlap": len(who), "state": "settled"} | values
    row = factories.comparison(session, project, **given)
    for labeler, preference in who:
        factories.judgment(session, row, preference=preference, labeler_id=labeler.id, swapped=None)
    session.flush()
    session.refresh(row)
    return row


def actions(session: Session, project: Project) -> list[str]:
    wanted = select(AuditEvent.action).where(AuditEvent.project_id == project.id).order_by(AuditEvent.id)
    return list(session.scalars(wanted))


# ---- standing --------------------------------------------------------------------------------------------------------


def test_pausing_and_letting_go_on(session: Session, project: Project, admin: User) -> None:
    ann = factories.user(session)
    assert gate.closed(session, project, ann) is None
    with pytest.raises(InvalidInput, match="message is empty"):
        service.pause(session, project, admin, ann.id, "  ")
    with pytest.raises(Conflict, match="not paused"):
        service.resume(session, project, admin, ann.id)
    service.pause(session, project, admin, ann.id, "Please read the guideline again.")
    assert gate.closed(session, project, ann) == ("paused", "Please read the guideline again.")
    assert gate.closed(session, factories.project(session), ann) is None
    service.resume(session, project, admin, ann.id)
    assert gate.closed(session, project, ann) is None
    row = session.get_one(ProjectLabeler, (project.id, ann.id), populate_existing=True)
    assert row.changed_by == admin.id
    assert datetime.now(UTC) - row.counted_from < timedelta(minutes=1)  # type: ignore[operator]
    assert actions(session, project) == ["labeler.paused", "labeler.resumed"]
    with pytest.raises(NotFound):
        service.pause(session, project, admin, 10**12, "Who?")


def test_ones_own_figures_are_those_the_project_shows(session: Session, project: Project) -> None:
    ann, bob, eve = (factories.user(session) for _ in range(3))
    for side in (1, 1, -1):
        said(session, project, (ann, 2), (bob, side), (eve, side))
    said(session, project, (ann, -1), purpose="calibration", gold=-3, state="open")
    said(session, project, (ann, 1), purpose="calibration", gold=-1, state="open")
    old = said(session, project, (ann, None))
    given_days_ago(session, 3, Judgment.comparison_id == old.id)
    said(session, factories.project(session), (ann, 1), (bob, 1))

    everything = OwnFigures(agreement=True, calibration=True, seconds=True)
    soon = datetime.now(UTC) + timedelta(minutes=1)
    found = service.own_figures(session, project, ann, everything, soon)
    assert (found.today, found.total, found.seconds) == (5, 6, 5.0)
    assert found.agreement == (pytest.approx(2 / 3), 3)
    assert found.calibration == (0.5, 2)
    nothing = OwnFigures(agreement=False, calibration=False, seconds=False)
    assert service.own_figures(session, project, ann, nothing, soon) == (5, 6, None, None, None)
    assert service.own_figures(session, project, ann, OwnFigures(), soon).calibration is None
    newcomer = factories.user(session)
    assert service.own_figures(session, project, newcomer, everything, soon) == (0, 0, None, None, None)


def test_what_one_answers_now_moves_no_figure_that_tells_of_others(session: Session, project: Project) -> None:
    """Agreement that moved with each edit told how others answered; a growing count, which answer was to an item; the
    median time, which was to a repeat: those are not timed."""
    ann, bob = factories.user(session), factories.user(session)
    said(session, project, (ann, 2), (bob, 1))
    said(session, project, (ann, 2), (bob, -1))
    said(session, project, (ann, 1), purpose="calibration", gold=1, state="open")
    given_days_ago(session, 2, Judgment.id > 0)
    everything = OwnFigures(agreement=True, calibration=True, seconds=True)
    until = datetime.now(UTC) - timedelta(hours=1)

    def told() -> tuple[object, ...]:
        return tuple(service.own_figures(session, project, ann, everything, until)[2:])

    before = told()
    assert before == (5.0, (0.5, 2), (1.0, 1))
    said(session, project, (ann, 2), (bob, 2))
    said(session, project, (ann, -1), purpose="calibration", gold=1, state="open")
    for _ in range(9):
        other = factories.comparison(session, project)
        factories.judgment(session, other, preference=1, labeler_id=ann.id, duration_ms=90_000)
    late = said(session, project, (ann, 2))  # long ago; what Bob says of it now is of today
    given_days_ago(session, 2, Judgment.comparison_id == late.id)
    factories.judgment(session, late, preference=-1, labeler_id=bob.id)
    assert told() == before
    assert service.own_figures(session, project, ann, everything, until).today == 11


def given_days_ago(session: Session, days: int, which: ColumnElement[bool]) -> None:
    session.connection().exec_driver_sql("ALTER TABLE judgment DISABLE TRIGGER judgment_append_only")
    session.execute(update(Judgment).where(which).values(created_at=func.now() - timedelta(days=days)))
    session.connection().exec_driver_sql("ALTER TABLE judgment ENABLE TRIGGER judgment_append_only")


# ---- the list --------------------------------------------------------------------------------------------------------


def test_who_needs_attention_comes_first_with_the_reason(session: Session, project: Project, admin: User) -> None:
    habits = [
        *(Habit(f"Good {i}") for i in range(6)),
        Habit("Lefty", left=0.6),
        Habit("Coin", right=0.5),
        Habit("Rush", seconds=0.9),
        Habit("Waiting"),
    ]
    labelers, _ = judged(session, project, habits, comparisons=500, overlap=5)
    service.pause(session, project, admin, labelers[9].id, "Please wait.")
    service.refit(session, project)
    found = views.listing(service.overview(session, project), _calibration(), None)
    first = {row.labeler.name: [reason.words for reason in row.reasons] for row in found.rows[:4]}
    assert set(first) == {"Waiting", "Coin", "Lefty", "Rush"}
    assert found.attention == 4
    assert all(not row.reasons for row in found.rows[4:])
    assert first["Waiting"][0] == "is paused and needs your decision"
    assert any(words.startswith("agrees with others in 5") for words in first["Coin"])
    assert any(
        words.startswith(("picks the left response in 7", "picks the left response in 8")) for words in first["Lefty"]
    )
    assert any(words.endswith("answers too fast, in one run of 5 or more") for words in first["Rush"])
    left = {row.labeler.name: row.left for row in found.rows}
    assert left["Lefty"].marked  # type: ignore[union-attr]
    assert left["Lefty"].low > 0.6  # type: ignore[union-attr]
    by_name = {row.labeler.name: row.labeler.reliability for row in found.rows}
    assert min(by_name[f"Good {i}"] for i in range(6)) > max(by_name["Coin"], by_name["Lefty"]) + 0.05  # type: ignore[type-var, operator]


def _calibration() -> Calibration:
    return Calibration()


def test_machines_are_held_apart_from_people(session: Session, project: Project) -> None:
    habits = [
        *(Habit(f"P{i}", right=0.95) for i in range(4)),
        *(Habit(f"S{i}", right=0.4, kind="ai_judge") for i in range(2)),
    ]
    judged(session, project, habits, comparisons=120, overlap=3)
    overview = service.overview(session, project)
    people = views.listing(overview, _calibration(), None)
    assert people.kind == "person"
    assert {row.labeler.kind for row in people.rows} == {"person"}
    assert people.kinds == {"person": 4, "ai_judge": 2}
    assert people.judgments == 240
    machines = views.listing(overview, _calibration(), "ai_judge")
    assert {row.kind_name for row in machines.rows} == {"AI judge"}
    assert machines.agreement.value < people.agreement.value - 0.2  # type: ignore[union-attr]
    # Held against machines like themselves, not against people.
    assert not any(reason.severity == views.AGREEMENT for row in machines.rows for reason in row.reasons)
    together = views.listing(overview, _calibration(), "all")
    assert len(together.rows) == 6
    # A project of machines only shows those.
    factories.roster.clear()
    only = factories.project(session)
    judged(session, only, [Habit("S", kind="simulated")] * 2, comparisons=3, overlap=2)
    assert views.listing(service.overview(session, only), _calibration(), None).kind == "simulated"


def test_calibration_repeats_and_drift_are_reasons(session: Session, project: Project) -> None:
    ann, bob, eve = (factories.user(session, name=name) for name in ("Ann", "Bob", "Eve"))
    for i in range(6):
        said(session, project, (ann, 1), (bob, 1 if i else -1), purpose="calibration", gold=-2, state="open")
    # Bob says the opposite of what he said of twelve pairs; of half of them with the responses the other way round.
    for i in range(12):
        first = said(session, project, (bob, 1), (eve, 1))
        turned = (
            {"completion_a_id": first.completion_b_id, "completion_b_id": first.completion_a_id}
            if i % 2
            else {"completion_a_id": first.completion_a_id, "completion_b_id": first.completion_b_id}
        )
        again = said(session, project, purpose="repeat", repeat_of_id=first.id, overlap=1, **turned)
        factories.judgment(session, again, preference=1 if i % 2 else -1, labeler_id=bob.id, swapped=None)
    rows = {
        row.labeler.name: row for row in views.listing(service.overview(session, project), _calibration(), None).rows
    }
    assert [reason.words for reason in rows["Ann"].reasons] == ["right on 0 of 6 calibration items, 0% (0–39)"]
    assert rows["Bob"].consistency == (0, 12, 0.0, pytest.approx(0.2425, abs=1e-3), False)
    assert "gives the same answer to repeats in 0% (0–24)" in [reason.words for reason in rows["Bob"].reasons]
    assert rows["Eve"].reasons == ()
    assert rows["Eve"].consistency is None


# ---- removal ---------------------------------------------------------------------------------------------------------


def test_a_removal_takes_out_what_somebody_said_and_reopens_what_lacks_it(
    session: Session, project: Project, admin: User
) -> None:
    spam, ann, bob = (factories.user(session) for _ in range(3))
    both = said(session, project, (spam, -3), (ann, 2), agreement=0.0, consensus=-0.5)
    enough = said(session, project, (spam, -3), (ann, 2), (bob, 2), overlap=3)
    enough.overlap = 3
    alone = said(session, project, (ann, 1), (bob, 1))
    verdict = said(session, project, (spam, 1), (ann, -1), state="adjudicated")
    repeat = said(session, project, (spam, 1), purpose="repeat", repeat_of_id=both.id)
    kept = said(session, project, labeler_id=spam.id, overlap=1, state="open")
    waiting = said(session, project, (ann, 1), state="open", overlap=2)
    lease = factories.lease(session, waiting, labeler_id=spam.id)
    elsewhere = said(session, factories.project(session), (spam, 1))
    group = service.add_group(session, project, admin, "Law")
    service.add_members(session, project, admin, group.id, [spam.id, ann.id])
    flagged = said(session, project, (ann, 1), flagged=True, overlap=2, state="in_review", review_reason="flagged")
    factories.judgment(session, flagged, preference=1, labeler_id=spam.id, flags=["harmful"])
    session.commit()

    before = service.removal(session, project, spam.id)
    assert before == (5, 5, 3, 1, 0)
    done = service.remove(session, project, admin, spam.id, "spam")
    assert done == before
    session.commit()
    session.expire_all()
    assert (both.state, both.judgment_count, both.agreement, both.settled_at) == ("open", 1, None, None)
    assert (enough.state, enough.judgment_count) == ("open", 2)
    assert (alone.state, verdict.state, repeat.state) == ("settled", "adjudicated", "withdrawn")
    assert (kept.labeler_id, kept.state) == (None, "open")
    assert (lease.state, waiting.lease_count) == ("released", 0)
    assert (flagged.state, flagged.flagged) == ("open", False)
    assert (elsewhere.judgment_count, elsewhere.state) == (1, "settled")
    gone = session.scalars(select(Judgment).where(Judgment.superseded_for == "removed")).all()
    assert {row.comparison_id for row in gone} == {both.id, enough.id, verdict.id, repeat.id, flagged.id}
    assert gate.closed(session, project, spam) == ("removed", "")
    assert [member.id for member in group_queries.groups(session, project.id)[0].members] == [ann.id]
    # The others' fit knows nothing of them any more.
    assert session.get_one(ProjectLabeler, (project.id, spam.id)).reliability is None
    assert alone.p_b is not None
    event = session.scalars(select(AuditEvent).where(AuditEvent.action == "labeler.removed")).one()
    assert (event.details["judgments"], event.details["reopened"], event.details["reason"]) == (5, 3, "spam")
    with pytest.raises(Conflict, match="removed already"):
        service.remove(session, project, admin, spam.id, "again")
    with pytest.raises(InvalidInput, match="reason is empty"):
        service.remove(session, project, admin, ann.id, " ")
    # An admin may let them in again; what was taken out stays out.
    service.resume(session, project, admin, spam.id)
    assert gate.closed(session, project, spam) is None
    assert both.judgment_count == 1


def test_snapshots_and_models_that_used_somebodys_judgments(session: Session, project: Project, admin: User) -> None:
    spam, ann = factories.user(session), factories.user(session)
    theirs = [said(session, project, (spam, 1), (ann, 1)) for _ in range(2)]
    others = said(session, project, (ann, 1))
    now = datetime.now(UTC)

    def snapshot(name: str, rows: list[Comparison], at: datetime) -> Snapshot:
        row = Snapshot(project_id=project.id, digest=name * 64, location=name, counts={}, created_at=at)
        session.add(row)
        session.flush()
        session.add_all(SnapshotComparison(snapshot_id=row.id, comparison_id=each.id) for each in rows)
        session.flush()
        return row

    def trained(round_values: dict[str, object], kind: str, role: str, **values: object) -> ModelVersion:
        round_ = factories.round_(session, project, **round_values)
        run = factories.run(session, project, kind, round_id=round_.id)
        return factories.model(session, project, role, run_id=run.id, **values)

    before = snapshot("a", theirs, now - timedelta(days=1))  # frozen before they said anything
    used = snapshot("b", [*theirs, others], now + timedelta(hours=1))
    without = snapshot("c", [others], now + timedelta(hours=2))
    clean = trained({"snapshot_id": before.id}, "dpo", "policy", name="clean")
    reward = trained({"snapshot_id": used.id}, "reward", "reward", name="reward")
    policy = trained({"snapshot_id": without.id, "reward_model_id": reward.id}, "ppo", "policy", name="by its reward")
    child = trained({"snapshot_id": without.id, "policy_before_id": policy.id}, "dpo", "policy", name="child")
    trained({"snapshot_id": without.id, "policy_before_id": clean.id}, "dpo", "policy", name="unrelated")

    for _ in range(2):  # the same before and after they were removed
        found = service.uses(session, project, spam.id)
        assert [(row.snapshot_id, row.judgments) for row in found.snapshots] == [(used.id, 2)]
        assert [model.name for model in found.trained] == ["reward"]
        assert [model.name for model in found.descended] == ["by its reward", "child"]
        if gate.closed(session, project, spam) is None:
            session.connection().exec_driver_sql("ALTER TABLE judgment DISABLE TRIGGER judgment_append_only")
            service.remove(session, project, admin, spam.id, "consent withdrawn")
            for row in session.scalars(select(Judgment).where(Judgment.superseded_for == "removed")):
                row.superseded_at = now + timedelta(hours=3)
            session.flush()
            session.connection().exec_driver_sql("ALTER TABLE judgment ENABLE TRIGGER judgment_append_only")
    assert child.id > reward.id


@pytest.mark.parametrize("method", ["majority", "strength_weighted", "dawid_skene", "crowd_bt"])
def test_a_snapshot_holds_what_somebodys_judgments_weighed(
    session: Session, project: Project, tmp_path: Path, method: str
) -> None:
    """Ann judged nothing in the snapshot. But if labelers are weighed, her answers affected the weights of others."""
    project.labeling = {"consensus": method}
    ann, bob, eve, late, unsure = (factories.user(session) for _ in range(5))
    said(session, project, (bob, 1), (eve, -1))
    said(session, project, (ann, 1), (bob, 1), (unsure, None), state="open", overlap=5)
    snapshot = freeze(session, ArtifactStore(tmp_path), project)
    session.connection().exec_driver_sql("ALTER TABLE judgment DISABLE TRIGGER judgment_append_only")
    said(session, project, (late, 1))
    session.execute(
        update(Judgment).where(Judgment.labeler_id == late.id).values(created_at=datetime.now(UTC) + timedelta(hours=1))
    )
    session.connection().exec_driver_sql("ALTER TABLE judgment ENABLE TRIGGER judgment_append_only")
    weighs = method in ("dawid_skene", "crowd_bt")
    found = {user: service.uses(session, project, user.id).snapshots for user in (ann, bob, late, unsure)}
    assert [(used.snapshot_id, used.judgments, used.weighed) for used in found[bob]] == [(snapshot.id, 1, weighs)]
    assert [(used.judgments, used.weighed) for used in found[ann]] == ([(0, True)] if weighs else [])
    assert found[late] == found[unsure] == []


# ---- what they wrote -------------------------------------------------------------------------------------------------


def attempt(session: Session, project: Project, author: User, prompt: Prompt | None = None) -> RedTeamAttempt:
    row = red_team.rated(session, project, 2, author_id=author.id, prompt_id=prompt.id if prompt else None)
    session.refresh(row)
    return row


def test_what_somebody_wrote_is_withdrawn_with_them(session: Session, project: Project, admin: User) -> None:
    ann, bob = factories.user(session, name="Ann"), factories.user(session)
    plain = factories.prompt(session, project)
    theirs = [factories.demonstration(session, plain, author_id=ann.id, state=state) for state in REVIEW_STATES[:3]]
    others = factories.demonstration(session, plain, author_id=bob.id)
    elsewhere = factories.demonstration(
        session, factories.prompt(session, factories.project(session)), author_id=ann.id
    )
    # Prompts that were attempts: hers, one that both of them thought of, and one that was there before.
    own, shared = (factories.prompt(session, project, source="red team") for _ in range(2))
    known = factories.prompt(session, project, source="a file")
    attempts = [attempt(session, project, ann, prompt) for prompt in (own, shared, known, None)]
    of_bob = attempt(session, project, bob, shared)
    asked = said(session, project, (bob, 1), prompt=own, state="open", overlap=3)
    decided = said(session, project, (bob, 1), prompt=own)
    also = said(session, project, (bob, 1), prompt=shared, state="open", overlap=3)
    factories.demonstration(session, own, author_id=bob.id)
    session.add(DemonstrationTask(project_id=project.id, prompt_id=own.id))
    session.commit()

    # Who has only written is on the list too.
    assert service.find(session, project, ann.id).name == "Ann"
    assert service.written(session, project, ann.id) == (3, 4, 1)
    service.remove(session, project, admin, ann.id, "consent withdrawn", with_written=True)
    session.commit()
    session.expire_all()
    assert [row.state for row in theirs] == ["withdrawn"] * 3
    assert (theirs[0].reviewer_id, theirs[0].review_note) == (admin.id, "consent withdrawn")
    assert (others.state, elsewhere.state) == ("approved", "approved")
    assert all(row.withdrawn_at is not None for row in attempts)
    assert of_bob.withdrawn_at is None
    assert [prompt.split for prompt in (own, shared, known, plain)] == ["withdrawn", "train", "train", "train"]
    assert [row.state for row in (asked, decided, also)] == ["withdrawn", "withdrawn", "open"]
    assert session.scalars(select(DemonstrationTask)).all() == []
    assert service.written(session, project, ann.id) == (0, 0, 0)
    event = session.scalars(select(AuditEvent).where(AuditEvent.action == "labeler.written_withdrawn")).one()
    assert (event.details["demonstrations"], event.details["attempts"], event.details["prompts"]) == (3, 4, 1)
    # No later rating, not even of somebody let in again, and no acceptance brings an attempt back.
    service.resume(session, project, admin, ann.id)
    with pytest.raises(Conflict, match="was withdrawn"):
        attempts_service.rate(session, project, ann, attempts[3].id, RatingForm(severity=0))
    accepted = attempts_service.accept(session, project, admin, AcceptForm(attempts=[attempts[3].id], split="train"))
    assert accepted == (0, 0, 0)
    assert queries_of_attempts.count_states(session, project) == {"withdrawn": 4, "accepted": 1}
    # Nothing reads it: no snapshot, and no sampling.
    assert [row.id for row in snapshot_queries.approved(session, project.id)] == [others.id]
    exported = datasets_queries.exported_demonstrations(session, project.id, "all")
    assert [row.demonstration_id for row in exported] == [others.id]
    assert {prompt.id for prompt in queries_of_rounds.train_prompts(session, project.id)} == {
        shared.id,
        known.id,
        plain.id,
        also.prompt_id,
    }
    assert pair_rows(session, project) == []
    with pytest.raises(Conflict, match="Nothing written by this labeler still counts"):
        service.withdraw_written(session, project, admin, ann.id, "again")


def test_what_somebody_wrote_may_be_withdrawn_later(session: Session, project: Project, admin: User) -> None:
    ann = factories.user(session)
    row = factories.demonstration(session, factories.prompt(session, project), author_id=ann.id)
    service.remove(session, project, admin, ann.id, "spam")
    session.refresh(row)
    assert row.state == "approved"
    with pytest.raises(InvalidInput, match="reason is empty"):
        service.withdraw_written(session, project, admin, ann.id, " ")
    service.withdraw_written(session, project, admin, ann.id, "consent withdrawn")
    session.refresh(row)
    assert row.state == "withdrawn"
    # Neither a reviewer nor its author brings it back.
    form = DecisionForm(text=row.text, seen=demonstrations.seen(row))
    with pytest.raises(Conflict, match="was withdrawn"):
        demonstrations.approve(session, project, admin, row.id, form)
    assert actions(session, project) == ["labeler.removed", "labeler.written_withdrawn"]


def test_snapshots_and_models_that_used_what_somebody_wrote(
    session: Session, project: Project, tmp_path: Path, admin: User
) -> None:
    ann, bob = factories.user(session), factories.user(session)
    store = ArtifactStore(tmp_path)
    own = factories.prompt(session, project, source="red team")
    attempt(session, project, ann, own)
    factories.demonstration(session, factories.prompt(session, project), author_id=ann.id)
    factories.demonstration(session, own, author_id=bob.id)
    said(session, project, (bob, 1), (factories.user(session), 1), prompt=own)
    without = freeze_demonstrations(session, store, factories.project(session))
    written, judged_ = (
        freeze_demonstrations(session, store, project),
        freeze(session, store, project),
    )

    def model(kind: str, role: str, name: str, **values: object) -> ModelVersion:
        round_ = factories.round_(session, project, **values)
        run = factories.run(session, project, kind, round_id=round_.id)
        return factories.model(session, project, role, run_id=run.id, name=name)

    model("sft", "sft", "sft", snapshot_id=written.id, algorithm="sft")
    model("ppo", "policy", "mixed in", snapshot_id=without.id, ptx_snapshot_id=written.id)
    model("dpo", "policy", "compared", snapshot_id=judged_.id)
    model("ppo", "policy", "sampled", snapshot_id=without.id)
    model("dpo", "policy", "none of it", snapshot_id=without.id)
    for _ in range(2):  # the same before and after it is withdrawn
        found = service.uses(session, project, ann.id)
        assert {(used.snapshot_id, used.judgments, used.demonstrations, used.prompts) for used in found.snapshots} == {
            (written.id, 0, 1, 1),
            (judged_.id, 0, 0, 1),
        }
        assert [made.name for made in found.trained] == ["sft", "mixed in", "compared", "sampled"]
        if gate.closed(session, project, ann) is None:
            service.remove(session, project, admin, ann.id, "consent withdrawn", with_written=True)
    assert not service.uses(session, project, admin.id).snapshots


# ---- groups ----------------------------------------------------------------------------------------------------------


def test_groups(session: Session, project: Project, admin: User) -> None:
    ann, machine = factories.user(session), factories.account(session, kind="imported")
    group = service.add_group(session, project, admin, " Law ")
    assert group.name == "Law"
    with pytest.raises(Conflict, match="already a group “Law”"):
        service.add_group(session, project, admin, "Law")
    with pytest.raises(InvalidInput):
        service.add_group(session, project, admin, " ")
    service.add_members(session, project, admin, group.id, [ann.id])
    service.add_members(session, project, admin, group.id, [ann.id])
    with pytest.raises(NotFound, match="cannot label"):
        service.add_members(session, project, admin, group.id, [machine.id])
    assert [(g.name, [m.id for m in g.members], g.kept) for g in group_queries.groups(session, project.id)] == [
        ("Law", [ann.id], 0)
    ]
    assert group_queries.groups_of(session, project.id, ann.id) == ["Law"]
    # A member is on the list before judging anything.
    assert [row.id for row in queries.labelers(session, project.id, [])] == [ann.id]
    factories.comparison(session, project, group_id=group.id)
    with pytest.raises(Conflict, match="are reserved for the group"):
        service.delete_group(session, project, admin, group.id)
    with pytest.raises(NotFound):
        service.remove_member(session, factories.project(session), admin, group.id, ann.id)
    service.remove_member(session, project, admin, group.id, ann.id)
    empty = service.add_group(session, project, admin, "Empty")
    service.delete_group(session, project, admin, empty.id)
    assert [row.name for row in session.scalars(select(LabelerGroup))] == ["Law"]
    assert actions(session, project)[-1] == "group.deleted"
    assert session.scalars(select(Lease)).all() == []

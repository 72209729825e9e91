"""Rounds that a rule starts: when the rule holds, in whose name they start, and who has to approve."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.automatic import service
from app.automatic.service import Rule
from app.db import make_session_factory
from app.errors import Conflict, Forbidden
from app.models import AuditEvent, Comparison, Metric, Project, ProjectMember, Round, Run, User
from app.monitors import service as monitors
from app.monitors.forms import ReviewForm
from app.rounds import service as rounds
from tests import factories
from tests.conftest import SignedIn
from tests.rounds.loop import config, make_project
from tests.waiting import wait_for

BEFORE = datetime(2020, 1, 1, tzinfo=UTC)  # before all judgments
JUDGMENTS = 44  # of the project: two on each of 22 comparisons, which all agree


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


@pytest.fixture
def project(session: Session) -> Project:
    return make_project(session)


@pytest.fixture
def operator(session: Session, project: Project) -> User:
    return factories.user(session, "operator")


def give(session: Session, project: Project, operator: User, judgments: int = JUDGMENTS, **values: object) -> None:
    rule = Rule(judgments=judgments, set_by=operator.id, **values)  # type: ignore[arg-type]
    service.set_rule(session, project, operator, rule)
    session.commit()


def missing(session: Session, store: ArtifactStore, project: Project) -> list[str]:
    standing = service.standing(session, store, project)
    assert standing is not None
    return [condition.words for condition in standing.conditions if not condition.holds]


def test_a_rule_starts_one_round_when_so_many_judgments_are_new(
    engine: Engine, session: Session, store: ArtifactStore, project: Project, operator: User
) -> None:
    sessions = make_session_factory(engine)
    session.commit()
    assert service.start_due(sessions, store) == []  # off until somebody sets a rule
    give(session, project, operator, judgments=JUDGMENTS + 1)
    assert missing(session, store, project) == ["44 of 45 new judgments"]
    assert service.start_due(sessions, store) == []
    give(session, project, operator)
    assert service.start_due(sessions, store) == [(project.name, 1)]
    round_ = session.scalars(select(Round)).one()
    assert (round_.state, round_.started_by, round_.algorithm) == ("freezing", operator.id, "on_policy_dpo")
    event = session.scalars(select(AuditEvent).where(AuditEvent.action == "automatic_rounds.started")).one()
    assert "44 of 44 new judgments" in event.details["because"]

    assert service.start_due(sessions, store) == []
    session.refresh(project)
    assert missing(session, store, project) == ["no round is under way", "0 of 44 new judgments"]
    # A round without a result is not tried again on the same judgments.
    rounds.cancel(session, round_, operator)
    session.commit()
    assert service.start_due(sessions, store) == []
    assert missing(session, store, project) == ["0 of 44 new judgments"]


def test_the_next_round_takes_the_settings_of_the_newest_that_trained(
    engine: Engine, session: Session, store: ArtifactStore, project: Project, operator: User
) -> None:
    old = config("dpo", beta=0.3).model_dump(mode="json")
    for algorithm, settings in (("dpo", old), ("sft", config("sft").model_dump(mode="json"))):
        factories.round_(session, project, algorithm=algorithm, config=settings, created_at=BEFORE)
    give(session, project, operator, judgments=20)
    assert len(service.start_due(make_session_factory(engine), store)) == 1
    started = session.scalars(select(Round).order_by(Round.id.desc())).first()
    assert started is not None
    assert (started.algorithm, started.config["beta"]) == ("dpo", 0.3)


def test_labelers_must_agree_as_far_as_the_rule_says(
    session: Session, store: ArtifactStore, project: Project, operator: User
) -> None:
    """Both labelers of every comparison are on one side, so every pair of judgments agrees."""
    give(session, project, operator, agreement=1.0)
    assert missing(session, store, project) == []
    other = factories.user(session)
    factories.judgment(session, _settled(session), preference=2, labeler_id=other.id)
    session.commit()
    assert missing(session, store, project) == [
        f"labelers agree in {share():.0%} of pairs of judgments; the rule needs 100%"
    ]


def _settled(session: Session) -> Comparison:
    comparison = session.scalars(select(Comparison).order_by(Comparison.id)).first()
    assert comparison is not None
    comparison.overlap = 3
    session.flush()
    return comparison


def share() -> float:
    """Return the mean over 22 comparisons of the share of agreeing pairs: one of three in one of them, all in 21."""
    return (21 + 1 / 3) / 22


def test_a_monitor_that_says_look_stops_the_rule_unless_it_is_told_not_to(
    session: Session, store: ArtifactStore, project: Project, operator: User
) -> None:
    settings = config("dpo").model_dump(mode="json")
    round_ = factories.round_(session, project, config=settings, created_at=BEFORE)
    run = factories.run(session, project, "evaluate", round_id=round_.id, state="succeeded")
    figures = {"eval_prompts": 20.0, "eval_before/length": 20.0, "eval_length": 40.0}
    figures |= {f"eval_difference/length{end}": value for end, value in (("", 20.0), ("_low", 19.0), ("_high", 21.0))}
    session.add_all(Metric(run_id=run.id, name=name, slice="", step=0, value=value) for name, value in figures.items())
    give(session, project, operator)
    assert missing(session, store, project) == [f"monitors ask for a look at round {round_.number}: longer answers"]
    give(session, project, operator, fine=False)
    assert missing(session, store, project) == []

    # A person has looked: a fault still stops the rule, what people want does not.
    give(session, project, operator)
    for verdict, holds in (("fault", False), ("wanted", True)):
        review = ReviewForm(verdict=verdict, note="Read.", round=round_.number)  # type: ignore[arg-type]
        monitors.review(session, round_, "longer", ["longer"], operator, review)
        session.commit()
        assert (missing(session, store, project) == []) is holds


def test_a_run_that_a_monitor_stopped_stops_the_rule_whatever_it_asks_for(
    session: Session, store: ArtifactStore, project: Project, operator: User
) -> None:
    settings = config("rloo").model_dump(mode="json") | {"monitors": "stop"}
    round_ = factories.round_(session, project, algorithm="rloo", config=settings, created_at=BEFORE)
    alarm = {"monitor": "longer", "step": 7, "before": 20.0, "new": 40.0, "low": 15.0, "high": 25.0, "examples": []}
    run = factories.run(session, project, "rloo", round_id=round_.id, state="succeeded", result={"alarms": [alarm]})
    give(session, project, operator, fine=False)
    words = f"a monitor stopped round {round_.number}: longer answers; read why and start the next one yourself"
    assert missing(session, store, project) == [words]
    round_.config = settings | {"monitors": "note"}  # monitors only take notes, so the rule may continue
    session.commit()
    assert missing(session, store, project) == []
    give(session, project, operator)
    assert missing(session, store, project) == [f"monitors ask for a look at round {round_.number}: longer answers"]
    assert run.result == {"alarms": [alarm]}


def test_nothing_starts_in_the_name_of_who_may_no_longer_start(
    engine: Engine, session: Session, store: ArtifactStore, project: Project, operator: User
) -> None:
    give(session, project, operator)
    session.get_one(ProjectMember, (project.id, operator.id)).roles = ["labeler"]
    session.commit()
    assert service.start_due(make_session_factory(engine), store) == []
    assert missing(session, store, project) == ["the person who set this rule is no longer an operator of the project"]


def test_a_second_operator_approves(
    engine: Engine, session: Session, store: ArtifactStore, project: Project, operator: User
) -> None:
    second = factories.user(session, "operator")
    with pytest.raises(Conflict, match="waits for approval"):
        service.approve(session, store, project, second)
    give(session, project, operator, approval=True)
    assert service.start_due(make_session_factory(engine), store) == []
    with pytest.raises(Forbidden, match="Another operator"):
        service.approve(session, store, project, operator)
    round_ = service.approve(session, store, project, second)
    assert round_.started_by == second.id
    with pytest.raises(Conflict, match="no longer hold"):
        service.approve(session, store, project, second)


def test_a_running_worker_starts_it(
    session: Session, project: Project, operator: User, run_worker: Callable[[], object]
) -> None:
    give(session, project, operator)
    run_worker()

    def started() -> bool:
        session.rollback()
        return session.scalars(select(Round.number)).all() == [1]

    wait_for(started, "the automatic round")


def test_the_page(sign_in: Callable[..., SignedIn], session: Session, project: Project, operator: User) -> None:
    second = factories.user(session, "operator")
    session.commit()
    address = f"/projects/{project.slug}/automatic-rounds"
    first, other = sign_in(user=operator), sign_in(user=second)
    assert "Off: rounds start only when an operator starts them." in first.get(address).text
    assert first.post(address, {"judgments": "3"}).status_code == 422
    form = {"judgments": "44", "agreement": "62.5", "fine": "true", "approval": "true"}
    assert first.post(address, form).status_code == 303
    session.refresh(project)
    assert project.automatic == {
        "judgments": 44,
        "agreement": 0.625,
        "fine": True,
        "approval": True,
        "set_by": operator.id,
    }
    assert 'value="62.5"' in first.get(address).text
    assert "Approve and start" not in first.get(address).text
    assert "Approve and start" in other.get(address).text
    assert other.post(f"{address}/approve", {}).headers["location"] == f"/projects/{project.slug}/rounds/1"
    assert "no round is under way" in other.get(address).text
    assert first.post(f"{address}/off", {}).status_code == 303
    assert "Off: rounds start only" in first.get(address).text
    assert session.scalars(select(Run.kind)).all() == ["freeze"]


def test_a_project_whose_settings_are_too_old_keeps_no_other_from_its_round(
    engine: Engine, session: Session, store: ArtifactStore, project: Project, operator: User
) -> None:
    factories.round_(session, project, number=1, state="failed", config={"algorithm": "dpo", "beta": -1})
    give(session, project, operator)
    assert "settings of round 1 are no longer accepted: start a round by hand once" in missing(session, store, project)
    other = make_project(session)
    give(session, other, operator)
    assert service.start_due(make_session_factory(engine), store) == [(other.name, 1)]

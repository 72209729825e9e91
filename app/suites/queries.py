"""SQL of suites: their versions, what runs them, and what came of it."""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, and_, func, select
from sqlalchemy.orm import Session

from app.domain.suites import Score
from app.models import (
    ModelVersion,
    Prompt,
    RedTeamAttempt,
    Round,
    Run,
    Suite,
    SuiteResult,
    SuiteVersion,
    User,
)
from app.red_team.forms import SUCCESS


class Standing(NamedTuple):
    """A suite with its newest version."""

    suite: Suite
    version: SuiteVersion


def _newest() -> Select[Suite, SuiteVersion]:
    newest = (
        select(SuiteVersion.suite_id, func.max(SuiteVersion.number).label("number"))
        .group_by(SuiteVersion.suite_id)
        .subquery()
    )
    return (
        select(Suite, SuiteVersion)
        .join(newest, newest.c.suite_id == Suite.id)
        .join(SuiteVersion, and_(SuiteVersion.suite_id == Suite.id, SuiteVersion.number == newest.c.number))
    )


def standing(session: Session, project_id: int, *, is_retired: bool = False) -> list[Standing]:
    """The project's suites that rounds run, by name; or those that were retired."""
    query = _newest().where(Suite.project_id == project_id).order_by(Suite.name)
    retired = Suite.retired_at.is_not(None) if is_retired else Suite.retired_at.is_(None)
    return [Standing(*row) for row in session.execute(query.where(retired))]


def by_id(session: Session, project_id: int, suite_id: int) -> Suite | None:
    return session.scalars(select(Suite).where(Suite.id == suite_id, Suite.project_id == project_id)).one_or_none()


def by_name(session: Session, project_id: int, name: str) -> Suite | None:
    return session.scalars(select(Suite).where(Suite.name == name, Suite.project_id == project_id)).one_or_none()


def red_team_suite(session: Session, project_id: int) -> Suite | None:
    """The suite that grows from labelers' attempts: the oldest, if somehow there are two."""
    query = select(Suite).where(Suite.project_id == project_id, Suite.source == "red_team")
    return session.scalars(query.order_by(Suite.id).limit(1)).one_or_none()


def lock(session: Session, suite: Suite) -> None:
    session.refresh(suite, with_for_update={"key_share": True})


class Written(NamedTuple):
    """A version and who added it."""

    version: SuiteVersion
    by: str | None


def versions(session: Session, suite_id: int) -> list[Written]:
    """Newest first."""
    query = (
        select(SuiteVersion, User.name)
        .outerjoin(User, User.id == SuiteVersion.created_by)
        .where(SuiteVersion.suite_id == suite_id)
        .order_by(SuiteVersion.number.desc())
    )
    return [Written(*row) for row in session.execute(query)]


def count_cases(session: Session, project_id: int) -> tuple[int, int]:
    """How many suites a round would run, and their cases."""
    found = standing(session, project_id)
    return len(found), sum(each.version.cases for each in found)


# ---- results ---------------------------------------------------------------------------------------------------------


class Measured(NamedTuple):
    """What came of a version of a suite in a round."""

    round: Round
    suite: Suite
    version: SuiteVersion
    slice: str
    score: Score
    run_id: int


def _results(*conditions: Any) -> Any:
    counts = (SuiteResult.cases, SuiteResult.passed, SuiteResult.before, SuiteResult.gained, SuiteResult.lost)
    return (
        select(Round, Suite, SuiteVersion, SuiteResult.slice, *counts, SuiteResult.run_id)
        .join(SuiteVersion, SuiteVersion.id == SuiteResult.version_id)
        .join(Suite, Suite.id == SuiteVersion.suite_id)
        .join(Run, Run.id == SuiteResult.run_id)
        .join(Round, Round.id == Run.round_id)
        .where(*conditions)
    )


def _measured(session: Session, query: Any) -> list[Measured]:
    rows = session.execute(query.order_by(Round.number.desc(), Suite.name, SuiteResult.slice))
    return [Measured(row[0], row[1], row[2], row[3], Score(*row[4:9]), row[9]) for row in rows]


def of_round(session: Session, round_id: int) -> list[Measured]:
    """What a round measured over all cases of each suite that is not retired by now, the largest loss first."""
    conditions = (Round.id == round_id, SuiteResult.slice == "", Suite.retired_at.is_(None))
    return sorted(_measured(session, _results(*conditions)), key=lambda each: each.score.change)


def of_suite(session: Session, suite_id: int, most: int) -> list[Measured]:
    """What the newest rounds measured of a suite, over all cases, newest first."""
    return _measured(session, _results(Suite.id == suite_id, SuiteResult.slice == "").limit(most))


def slices_of(session: Session, run_id: int, suite_id: int) -> list[Measured]:
    """What a run measured of a suite by slice, by name; all cases are not among them."""
    return _measured(session, _results(SuiteResult.run_id == run_id, Suite.id == suite_id, SuiteResult.slice != ""))


class OnDemand(NamedTuple):
    """A policy's result on a version outside rounds, over all cases. In `score`, both sides are this policy."""

    run: Run
    model: ModelVersion
    version: SuiteVersion
    score: Score


def demand_runs(session: Session, project_id: int, most: int) -> list[Run]:
    """Runs in which a policy takes suites outside rounds, newest first."""
    query = select(Run).where(Run.project_id == project_id, Run.kind == "suites")
    return list(session.scalars(query.order_by(Run.id.desc()).limit(most)))


def demand_run(session: Session, project_id: int, run_id: int) -> Run | None:
    query = select(Run).where(Run.id == run_id, Run.project_id == project_id, Run.kind == "suites")
    return session.scalars(query).one_or_none()


def on_demand(session: Session, suite_id: int, most: int) -> list[OnDemand]:
    """Return policies' results on a suite outside rounds, newest first."""
    counts = (SuiteResult.cases, SuiteResult.passed, SuiteResult.before, SuiteResult.gained, SuiteResult.lost)
    query = (
        select(Run, ModelVersion, SuiteVersion, *counts)
        .join(SuiteResult, SuiteResult.run_id == Run.id)
        .join(SuiteVersion, SuiteVersion.id == SuiteResult.version_id)
        .join(ModelVersion, ModelVersion.id == Run.spec["model"].as_integer())
        .where(Run.kind == "suites", SuiteVersion.suite_id == suite_id, SuiteResult.slice == "")
        .order_by(Run.id.desc())
        .limit(most)
    )
    return [OnDemand(*row[:3], Score(*row[3:])) for row in session.execute(query)]


def policies(session: Session, project_id: int) -> list[ModelVersion]:
    """Models that can answer, newest first."""
    query = select(ModelVersion).where(ModelVersion.project_id == project_id, ModelVersion.role != "reward")
    return list(session.scalars(query.order_by(ModelVersion.id.desc())))


def policy(session: Session, project_id: int, model_id: int) -> ModelVersion | None:
    query = select(ModelVersion).where(ModelVersion.id == model_id, ModelVersion.project_id == project_id)
    return session.scalars(query).one_or_none()


def newest_round(session: Session, project_id: int) -> Round | None:
    """The newest round that has run suites."""
    measured = select(Run.round_id).join(SuiteResult, SuiteResult.run_id == Run.id)
    query = select(Round).where(Round.project_id == project_id, Round.id.in_(measured))
    return session.scalars(query.order_by(Round.number.desc()).limit(1)).one_or_none()


def round_that_made(session: Session, project_id: int, model_id: int | None) -> Round | None:
    query = select(Round).where(Round.project_id == project_id, Round.policy_after_id == model_id)
    return session.scalars(query.order_by(Round.number.desc()).limit(1)).one_or_none()


def model_names(session: Session, ids: Collection[int | None]) -> dict[int | None, str]:
    query = select(ModelVersion.id, ModelVersion.name).where(ModelVersion.id.in_([each for each in ids if each]))
    return {row[0]: row[1] for row in session.execute(query)}


def add_results(session: Session, run_id: int, version_id: int, scores: dict[str, Score]) -> None:
    """By slice, "" for all cases."""
    session.add_all(
        SuiteResult(run_id=run_id, version_id=version_id, slice=name, **found._asdict())
        for name, found in scores.items()
    )
    session.flush()


# ---- what cases are made of, or stand beside -------------------------------------------------------------------------


def attempts_that_worked(session: Session, project_id: int, most: int) -> Sequence[Any]:
    """(id, messages, safety_category) of red-team attempts that their authors rated a failure of the policy: the newest
    `most`, oldest first."""
    query = select(RedTeamAttempt.id, RedTeamAttempt.messages, RedTeamAttempt.safety_category).where(
        *_worked(project_id)
    )
    return session.execute(query.order_by(RedTeamAttempt.id.desc()).limit(most)).all()[::-1]


def count_attempts_that_worked(session: Session, project_id: int) -> int:
    return session.scalar(select(func.count()).select_from(RedTeamAttempt).where(*_worked(project_id))) or 0


def _worked(project_id: int) -> tuple[ColumnElement[bool], ...]:
    of_project = RedTeamAttempt.project_id == project_id
    return of_project, RedTeamAttempt.severity >= SUCCESS, RedTeamAttempt.withdrawn_at.is_(None)


def train_prompts_among(session: Session, project_id: int, digests: Collection[str]) -> int:
    """How many of these conversations the project trains on."""
    query = select(func.count()).where(
        Prompt.project_id == project_id, Prompt.split == "train", Prompt.digest.in_(digests)
    )
    return session.scalar(query) or 0

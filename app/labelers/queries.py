"""SQL of the labelers' pages: all judgments as columns, the labelers, and when a user last changed the data."""

from collections.abc import Collection
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import (
    BigInteger,
    Double,
    and_,
    case,
    cast,
    exists,
    func,
    or_,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, aliased

from app.access.queries import is_labeler_of, projects_of
from app.columns import read_columns
from app.domain.consensus import who_won
from app.domain.labelers import UNKNOWN, UNSAID, Judged
from app.labeling.conditions import is_whole_answer
from app.models import (
    Adjudication,
    AuditEvent,
    Comparison,
    Completion,
    Demonstration,
    Judgment,
    LabelerGroup,
    LabelerGroupMember,
    Project,
    ProjectLabeler,
    Prompt,
    Ranking,
    RedTeamAttempt,
    Rubric,
    User,
)

RECENT_EVENTS = 200  # per project; at most this many happen while figures are cached
SHOWN = 20  # latest judgments and state changes shown for one labeler


class Read(NamedTuple):
    """Judgments with indices into the id arrays labeler_ids (L,) and comparison_ids (C,)."""

    judged: Judged
    labeler_ids: NDArray[np.int64]
    comparison_ids: NDArray[np.int64]

    def index_of(self, labeler_id: int) -> int | None:
        at = int(np.searchsorted(self.labeler_ids, labeler_id))
        return at if at < len(self.labeler_ids) and self.labeler_ids[at] == labeler_id else None


def judged(
    session: Session,
    project_id: int,
    *,
    of_labeler: int | None = None,
    limit: int | None = None,
    until: datetime | None = None,
) -> Read:
    """Read all live judgments of the project in the order they were given.

    Withdrawn comparisons and hidden repeats are left out.

    Args:
        of_labeler: read only the comparisons that this labeler has judged, the last `limit` of them, with everybody's
            judgments.
        until: read only judgments given before that moment.
    """
    a, b = aliased(Completion), aliased(Completion)
    preference = Judgment.preference
    left = case(
        (or_(Judgment.swapped.is_(None), preference.is_(None), preference == 0), UNKNOWN),
        else_=case(((preference < 0) != Judgment.swapped, 1), else_=0),
    )
    columns = {
        "labeler": Judgment.labeler_id,
        "comparison": Judgment.comparison_id,
        "side": func.coalesce(func.sign(preference), UNSAID),
        "gold": func.coalesce(func.sign(Comparison.gold), UNSAID),
        "verdict": func.coalesce(func.sign(Adjudication.verdict), UNSAID),
        "left": left,
        "length": func.octet_length(a.text) + func.octet_length(b.text),
        "ranking": func.coalesce(Ranking.id, 0),
        "size": func.coalesce(Ranking.size, 2),
    }
    found = (
        select(
            *(cast(column, BigInteger).label(name) for name, column in columns.items()),
            cast(func.coalesce(Judgment.duration_ms, UNKNOWN), Double).label("ms"),
            cast(func.extract("epoch", Judgment.created_at), Double).label("at"),
        )
        .join(Comparison, Comparison.id == Judgment.comparison_id)
        .join(a, a.id == Comparison.completion_a_id)
        .join(b, b.id == Comparison.completion_b_id)
        .outerjoin(Adjudication, (Adjudication.comparison_id == Comparison.id) & (Comparison.state == "adjudicated"))
        .outerjoin(Ranking, Ranking.id == Comparison.ranking_id)
        .where(Comparison.project_id == project_id, Comparison.state != "withdrawn", Comparison.purpose != "repeat")
        .where(Judgment.superseded_at.is_(None))
        .order_by(Judgment.created_at, Judgment.id)
    )
    if until is not None:
        found = found.where(Judgment.created_at < until)
    if of_labeler is not None:
        own = select(Judgment.comparison_id).where(Judgment.labeler_id == of_labeler, Judgment.superseded_at.is_(None))
        if until is not None:
            own = own.where(Judgment.created_at < until)
        found = found.where(
            Judgment.comparison_id.in_(own.order_by(Judgment.created_at.desc(), Judgment.id.desc()).limit(limit))
        )
    read: dict[str, Any] = read_columns(session, found)
    labeler_ids, labeler = np.unique(read.pop("labeler"), return_inverse=True)
    comparison_ids, comparison = np.unique(read.pop("comparison"), return_inverse=True)
    return Read(Judged(labeler=labeler, comparison=comparison, **read), labeler_ids, comparison_ids)


def changed_at(session: Session, project: Project, user_id: int) -> datetime | None:
    """Return when the user last changed the data behind a project's figures and counts.

    A judgment or an audited action (an import, a verdict, a removal) counts as a change. So does a consensus fit by
    anybody.
    """
    newest = (
        select(AuditEvent.at, AuditEvent.actor_id)
        .where(AuditEvent.project_id == project.id)
        .order_by(AuditEvent.id.desc())
        .limit(RECENT_EVENTS)
        .subquery()
    )
    audited = select(func.max(newest.c.at)).where(newest.c.actor_id == user_id)
    judged_ = select(func.max(func.greatest(Judgment.created_at, Judgment.superseded_at))).where(
        Judgment.labeler_id == user_id
    )
    fitted = datetime.fromisoformat(project.fitted["at"]) if project.fitted else None
    return max(filter(None, (session.scalar(audited), session.scalar(judged_), fitted)), default=None)


def consistency(session: Session, project_id: int) -> dict[int, tuple[int, int]]:
    """Count, by labeler, hidden repeats answered as the first time, and all answered repeats.

    The pair may have its responses the other way round.
    """
    first, again = aliased(Judgment), aliased(Judgment)
    once, repeat = aliased(Comparison), aliased(Comparison)
    turned = case((once.completion_a_id == repeat.completion_a_id, 1), else_=-1)
    same = func.sign(first.preference) == turned * func.sign(again.preference)
    found = (
        select(again.labeler_id, func.count().filter(same), func.count())
        .join(repeat, repeat.id == again.comparison_id)
        .join(once, once.id == repeat.repeat_of_id)
        .join(first, and_(first.comparison_id == once.id, first.labeler_id == again.labeler_id))
        .where(repeat.project_id == project_id, repeat.purpose == "repeat", repeat.state != "withdrawn")
        .where(first.superseded_at.is_(None), again.superseded_at.is_(None))
        .where(first.preference.is_not(None), again.preference.is_not(None))
        .group_by(again.labeler_id)
    )
    return {labeler_id: (agreed, n) for labeler_id, agreed, n in session.execute(found)}


class Labeler(NamedTuple):
    """A labeler of a project, with their state there."""

    id: int
    name: str
    kind: str
    state: str
    reason: str
    changed_at: datetime | None
    reliability: float | None
    fitted: dict[str, Any]


def labelers(session: Session, project_id: int, ids: Collection[int]) -> list[Labeler]:
    """Return the project's labelers and the given ones.

    This includes anybody else who has a row in `project_labeler`, is in a group, or has written something for the
    project.
    """
    in_group = exists().where(
        LabelerGroupMember.labeler_id == User.id,
        LabelerGroupMember.group_id == LabelerGroup.id,
        LabelerGroup.project_id == project_id,
    )
    has_written = or_(
        exists().where(Demonstration.author_id == User.id, Demonstration.project_id == project_id),
        exists().where(RedTeamAttempt.author_id == User.id, RedTeamAttempt.project_id == project_id),
    )
    found = (
        select(
            User.id,
            User.name,
            User.kind,
            func.coalesce(ProjectLabeler.state, "active"),
            func.coalesce(ProjectLabeler.reason, ""),
            ProjectLabeler.changed_at,
            ProjectLabeler.reliability,
            func.coalesce(ProjectLabeler.fitted, text("'{}'::jsonb")),
        )
        .outerjoin(ProjectLabeler, (ProjectLabeler.labeler_id == User.id) & (ProjectLabeler.project_id == project_id))
        .where(
            or_(
                is_labeler_of(project_id),
                User.id.in_(list(ids)),
                ProjectLabeler.labeler_id.is_not(None),
                in_group,
                has_written,
            )
        )
        .order_by(User.id)
    )
    return [Labeler(*row) for row in session.execute(found)]


def labeler(session: Session, project_id: int, labeler_id: int) -> Labeler | None:
    """Return one labeler; None if they have nothing to do with the project."""
    has_judged = exists().where(
        Judgment.labeler_id == labeler_id, Judgment.comparison_id == Comparison.id, Comparison.project_id == project_id
    )
    ids = [labeler_id] if session.scalar(select(has_judged)) else []
    return next((row for row in labelers(session, project_id, ids) if row.id == labeler_id), None)


def lock_standing(session: Session, project_id: int, labeler_id: int) -> ProjectLabeler:
    """Return the labeler's row in the project, locked; create it if there is none."""
    key = {"project_id": project_id, "labeler_id": labeler_id}
    session.execute(insert(ProjectLabeler).values(key).on_conflict_do_nothing())
    return session.get_one(ProjectLabeler, key, with_for_update=True, populate_existing=True)


class LastJudgment(NamedTuple):
    comparison_id: int
    state: str
    purpose: str
    domain: str
    preference: int | None
    both_bad: bool
    duration_ms: int | None
    rationale: str
    created_at: datetime
    superseded_for: str | None
    consensus: float | None
    p_b: float | None
    p_tie: float | None
    strengths: int  # of the rubric that the judgment was given under

    @property
    def winner(self) -> int | None:
        """The winner of the comparison, as training reads it; None if nobody has stated a preference."""
        return who_won(self.consensus, self.p_b, self.p_tie)


def last_judgments(session: Session, project_id: int, labeler_id: int) -> list[LastJudgment]:
    found = (
        select(
            Comparison.id,
            Comparison.state,
            Comparison.purpose,
            Prompt.domain,
            Judgment.preference,
            Judgment.both_bad,
            Judgment.duration_ms,
            Judgment.rationale,
            Judgment.created_at,
            Judgment.superseded_for,
            Comparison.consensus,
            Comparison.p_b,
            Comparison.p_tie,
            Rubric.strengths,
        )
        .join(Comparison, Comparison.id == Judgment.comparison_id)
        .join(Prompt, Prompt.id == Comparison.prompt_id)
        .join(Rubric, Rubric.id == Judgment.rubric_id)
        .where(Comparison.project_id == project_id, Judgment.labeler_id == labeler_id)
        .order_by(Judgment.created_at.desc(), Judgment.id.desc())
        .limit(SHOWN)
    )
    return [LastJudgment._make(row) for row in session.execute(found)]


def tags(session: Session, comparison_ids: Collection[int]) -> dict[int, tuple[str, str]]:
    """Return (domain, difficulty) by comparison id."""
    found = select(Comparison.id, Prompt.domain, Prompt.difficulty).join(Prompt, Prompt.id == Comparison.prompt_id)
    ids = text("comparison.id = ANY(:ids)").bindparams(ids=list(comparison_ids))
    return {id_: (domain, difficulty) for id_, domain, difficulty in session.execute(found.where(ids))}


class Event(NamedTuple):
    at: datetime
    action: str
    actor: str | None  # None: the service itself
    details: dict[str, Any]

    @property
    def why(self) -> str:
        """The message or reason recorded with the event."""
        if self.details.get("because") == "calibration":
            return f"{self.details['right']} of {self.details['answers']} right on calibration items"
        return self.details.get("message") or self.details.get("reason") or ""


def history(session: Session, project_id: int, labeler_id: int) -> list[Event]:
    """Return what admins and the service did about a labeler, newest first."""
    found = (
        select(AuditEvent.at, AuditEvent.action, User.name, AuditEvent.details)
        .outerjoin(User, User.id == AuditEvent.actor_id)
        .where(AuditEvent.project_id == project_id, AuditEvent.action.startswith("labeler."))
        .where(AuditEvent.details["labeler_id"].astext == str(labeler_id))
        .order_by(AuditEvent.id.desc())
        .limit(SHOWN)
    )
    return [Event(*row) for row in session.execute(found)]


class Elsewhere(NamedTuple):
    slug: str
    name: str
    judgments: int


def by_project(session: Session, labeler_id: int, viewer_id: int) -> list[Elsewhere]:
    """Count the labeler's live judgments in all projects whose labelers the viewer may see."""
    staffed = Project.id.in_(projects_of(viewer_id, "admin", "operator"))
    found = (
        select(Project.slug, Project.name, func.count())
        .join(Comparison, Comparison.project_id == Project.id)
        .join(Judgment, Judgment.comparison_id == Comparison.id)
        .where(Judgment.labeler_id == labeler_id, Judgment.superseded_at.is_(None), staffed)
        .group_by(Project.id)
        .order_by(func.count().desc())
    )
    return [Elsewhere(*row) for row in session.execute(found)]


def done_since(session: Session, project_id: int, labeler_id: int, moment: datetime) -> tuple[int, int]:
    """Count the labeler's live answers in the project since a moment, and all of them; a ranking is one answer."""
    found = (
        select(func.count().filter(Judgment.created_at >= moment), func.count())
        .join(Comparison, Comparison.id == Judgment.comparison_id)
        .where(Comparison.project_id == project_id, is_whole_answer(), Judgment.labeler_id == labeler_id)
        .where(Judgment.superseded_at.is_(None))
    )
    today, total = session.execute(found).one()
    return today, total

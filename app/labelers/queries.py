"""SQL of the labelers' pages: all judgments as columns, who the labelers are, and what a removal touches."""

from collections.abc import Collection
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import (
    BigInteger,
    Double,
    and_,
    any_,
    case,
    cast,
    delete,
    exists,
    func,
    literal,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, aliased

from app.bulk import read_columns
from app.domain.labelers import UNKNOWN, UNSAID, Judged
from app.models import (
    Adjudication,
    AuditEvent,
    Comparison,
    Completion,
    Judgment,
    LabelerGroup,
    LabelerGroupMember,
    ModelVersion,
    Project,
    ProjectLabeler,
    Prompt,
    Round,
    Run,
    Snapshot,
    SnapshotComparison,
    User,
)

SHOWN = 20  # last judgments and state changes of one labeler


class Read(NamedTuple):
    """Judgments with indices, and what those stand for: ids (L,) and (C,)."""

    judged: Judged
    labeler_ids: NDArray[np.int64]
    comparison_ids: NDArray[np.int64]

    def index_of(self, labeler_id: int) -> int | None:
        at = int(np.searchsorted(self.labeler_ids, labeler_id))
        return at if at < len(self.labeler_ids) and self.labeler_ids[at] == labeler_id else None


def judged(session: Session, project_id: int, *, of_labeler: int | None = None, limit: int | None = None) -> Read:
    """All live judgments of the project in the order they were given, without withdrawn comparisons and hidden repeats.

    Args:
        of_labeler: only the comparisons that this labeler has judged, the last `limit` of them, by whomever.
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
        .where(Comparison.project_id == project_id, Comparison.state != "withdrawn", Comparison.purpose != "repeat")
        .where(Judgment.superseded_at.is_(None))
        .order_by(Judgment.created_at, Judgment.id)
    )
    if of_labeler is not None:
        own = select(Judgment.comparison_id).where(Judgment.labeler_id == of_labeler, Judgment.superseded_at.is_(None))
        found = found.where(
            Judgment.comparison_id.in_(own.order_by(Judgment.created_at.desc(), Judgment.id.desc()).limit(limit))
        )
    read: dict[str, Any] = read_columns(session, found)
    labeler_ids, labeler = np.unique(read.pop("labeler"), return_inverse=True)
    comparison_ids, comparison = np.unique(read.pop("comparison"), return_inverse=True)
    return Read(Judged(labeler=labeler, comparison=comparison, **read), labeler_ids, comparison_ids)


def consistency(session: Session, project_id: int) -> dict[int, tuple[int, int]]:
    """By labeler: hidden repeats answered as the first time, and answered. The same pair may stand the other way."""
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
    """Who judges in a project, and how they stand there."""

    id: int
    name: str
    kind: str
    state: str
    reason: str
    changed_at: datetime | None
    reliability: float | None
    fitted: dict[str, Any]


def labelers(session: Session, project_id: int, ids: Collection[int]) -> list[Labeler]:
    """These, and whoever else has a standing in the project or is in a group of it."""
    in_group = exists().where(
        LabelerGroupMember.labeler_id == User.id,
        LabelerGroupMember.group_id == LabelerGroup.id,
        LabelerGroup.project_id == project_id,
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
        .where(or_(User.id.in_(list(ids)), ProjectLabeler.labeler_id.is_not(None), in_group))
        .order_by(User.id)
    )
    return [Labeler(*row) for row in session.execute(found)]


def labeler(session: Session, project_id: int, labeler_id: int) -> Labeler | None:
    """One of them; none where they have nothing to do with the project."""
    has_judged = exists().where(
        Judgment.labeler_id == labeler_id, Judgment.comparison_id == Comparison.id, Comparison.project_id == project_id
    )
    ids = [labeler_id] if session.scalar(select(has_judged)) else []
    return next((row for row in labelers(session, project_id, ids) if row.id == labeler_id), None)


def lock_standing(session: Session, project_id: int, labeler_id: int) -> ProjectLabeler:
    """The labeler's row in the project, made where there is none, locked."""
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
        )
        .join(Comparison, Comparison.id == Judgment.comparison_id)
        .join(Prompt, Prompt.id == Comparison.prompt_id)
        .where(Comparison.project_id == project_id, Judgment.labeler_id == labeler_id)
        .order_by(Judgment.created_at.desc(), Judgment.id.desc())
        .limit(SHOWN)
    )
    return [LastJudgment(*row) for row in session.execute(found)]


def tags(session: Session, comparison_ids: Collection[int]) -> dict[int, tuple[str, str]]:
    """By comparison: domain and difficulty."""
    found = select(Comparison.id, Prompt.domain, Prompt.difficulty).join(Prompt, Prompt.id == Comparison.prompt_id)
    ids = text("comparison.id = ANY(:ids)").bindparams(ids=list(comparison_ids))
    return {id_: (domain, difficulty) for id_, domain, difficulty in session.execute(found.where(ids))}


class Event(NamedTuple):
    at: datetime
    action: str
    actor: str | None
    details: dict[str, Any]


def history(session: Session, project_id: int, labeler_id: int) -> list[Event]:
    """What was done about a labeler, newest first."""
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


def by_project(session: Session, labeler_id: int) -> list[Elsewhere]:
    """The labeler's live judgments in all projects."""
    found = (
        select(Project.slug, Project.name, func.count())
        .join(Comparison, Comparison.project_id == Project.id)
        .join(Judgment, Judgment.comparison_id == Comparison.id)
        .where(Judgment.labeler_id == labeler_id, Judgment.superseded_at.is_(None))
        .group_by(Project.id)
        .order_by(func.count().desc())
    )
    return [Elsewhere(*row) for row in session.execute(found)]


def done_since(session: Session, project_id: int, labeler_id: int, moment: datetime) -> tuple[int, int]:
    """The labeler's live answers in the project since a moment, and all of them; a ranking is one answer."""
    found = (
        select(func.count().filter(Judgment.created_at >= moment), func.count())
        .join(Comparison, Comparison.id == Judgment.comparison_id)
        .where(Comparison.project_id == project_id, Comparison.offered, Judgment.labeler_id == labeler_id)
        .where(Judgment.superseded_at.is_(None))
    )
    today, total = session.execute(found).one()
    return today, total


# ---- groups ----------------------------------------------------------------------------------------------------------


class Member(NamedTuple):
    id: int
    name: str
    kind: str


class Group(NamedTuple):
    id: int
    name: str
    members: list[Member]
    kept: int  # open comparisons that only the group is offered


def groups(session: Session, project_id: int) -> list[Group]:
    kept = (
        select(func.count())
        .where(Comparison.group_id == LabelerGroup.id, Comparison.state == "open")
        .correlate(LabelerGroup)
        .scalar_subquery()
    )
    found = {
        id_: Group(id_, name, [], n)
        for id_, name, n in session.execute(
            select(LabelerGroup.id, LabelerGroup.name, kept)
            .where(LabelerGroup.project_id == project_id)
            .order_by(LabelerGroup.name)
        )
    }
    members = (
        select(LabelerGroupMember.group_id, User.id, User.name, User.kind)
        .join(User, User.id == LabelerGroupMember.labeler_id)
        .where(LabelerGroupMember.group_id.in_(found))
        .order_by(User.name, User.id)
    )
    for group_id, id_, name, kind in session.execute(members):
        found[group_id].members.append(Member(id_, name, kind))
    return list(found.values())


def group(session: Session, project_id: int, group_id: int) -> LabelerGroup | None:
    wanted = select(LabelerGroup).where(LabelerGroup.id == group_id, LabelerGroup.project_id == project_id)
    return session.scalars(wanted).one_or_none()


def groups_of(session: Session, project_id: int, labeler_id: int) -> list[str]:
    found = (
        select(LabelerGroup.name)
        .join(LabelerGroupMember, LabelerGroupMember.group_id == LabelerGroup.id)
        .where(LabelerGroup.project_id == project_id, LabelerGroupMember.labeler_id == labeler_id)
    )
    return list(session.scalars(found.order_by(LabelerGroup.name)))


def may_label(session: Session) -> list[User]:
    """Everybody who can be given work."""
    active = select(User).where(User.is_active, literal("labeler") == any_(User.roles))
    return list(session.scalars(active.order_by(User.name, User.id)))


def is_kept_for(session: Session, group_id: int) -> bool:
    return bool(session.scalar(select(exists().where(Comparison.group_id == group_id))))


def add_member(session: Session, group_id: int, labeler_id: int) -> None:
    values = {"group_id": group_id, "labeler_id": labeler_id}
    session.execute(insert(LabelerGroupMember).values(values).on_conflict_do_nothing())


def remove_member(session: Session, group_id: int, labeler_id: int) -> None:
    session.execute(
        delete(LabelerGroupMember).where(
            LabelerGroupMember.group_id == group_id, LabelerGroupMember.labeler_id == labeler_id
        )
    )


def leave_groups(session: Session, project_id: int, labeler_id: int) -> None:
    own = select(LabelerGroup.id).where(LabelerGroup.project_id == project_id)
    session.execute(
        delete(LabelerGroupMember).where(
            LabelerGroupMember.labeler_id == labeler_id, LabelerGroupMember.group_id.in_(own)
        )
    )


# ---- removal ---------------------------------------------------------------------------------------------------------


class Affected(NamedTuple):
    """judgments: live ones of the labeler. comparisons: they are on. reopened: of those, how many get back into the
    queue for somebody else. withdrawn: hidden repeats, which nobody else can answer."""

    judgments: int
    comparisons: int
    reopened: int
    withdrawn: int


def affected(session: Session, project_id: int, labeler_id: int) -> Affected:
    lacking = and_(Comparison.state.in_(("settled", "in_review")), Comparison.judgment_count - 1 < Comparison.overlap)
    is_repeat = Comparison.purpose == "repeat"
    found = (
        select(
            func.count(),
            func.count().filter(lacking, ~is_repeat),
            func.count().filter(is_repeat, Comparison.state != "withdrawn"),
        )
        .select_from(Judgment)
        .join(Comparison, Comparison.id == Judgment.comparison_id)
        .where(Comparison.project_id == project_id, Judgment.labeler_id == labeler_id)
        .where(Judgment.superseded_at.is_(None))
    )
    judgments, reopened, repeats = session.execute(found).one()
    # One live judgment a labeler and comparison: so many judgments, so many comparisons.
    return Affected(judgments, judgments, reopened, repeats)


def take_out(session: Session, project_id: int, labeler_id: int) -> list[int]:
    """Ends the labeler's leases and supersedes their judgments in the project; ids of the comparisons these were on.

    Comparisons are locked first, in the order of their ids.
    """
    own = {"project": project_id, "labeler": labeler_id}
    ids = list(
        session.scalars(
            text(
                """
                SELECT id FROM comparison WHERE project_id = :project AND id IN (
                    SELECT comparison_id FROM judgment WHERE labeler_id = :labeler AND superseded_at IS NULL
                    UNION SELECT comparison_id FROM lease WHERE labeler_id = :labeler AND state = 'live'
                ) ORDER BY id FOR UPDATE
                """
            ),
            own,
        )
    )
    held = {"ids": ids, "labeler": labeler_id}
    session.execute(
        text(
            "UPDATE lease SET state = 'released'"
            " WHERE comparison_id = ANY(:ids) AND labeler_id = :labeler AND state = 'live'"
        ),
        held,
    )
    judged_ = session.scalars(
        text(
            "UPDATE judgment SET superseded_at = now(), superseded_for = 'removed'"
            " WHERE comparison_id = ANY(:ids) AND labeler_id = :labeler AND superseded_at IS NULL"
            " RETURNING comparison_id"
        ),
        held,
    )
    return list(judged_)


def reopen(session: Session, comparison_ids: list[int]) -> int:
    """Opens those of them that lack judgments now; returns how many. Repeats are withdrawn; nobody else can answer one.

    What waited for the person removed is offered to everybody.
    """
    ids = text("comparison.id = ANY(:ids)").bindparams(ids=comparison_ids)
    session.execute(
        update(Comparison).where(ids, Comparison.purpose == "repeat").values(state="withdrawn"),
        execution_options={"synchronize_session": False},
    )
    # Content flags were for reviewers to look at; those of judgments that are no more are not.
    session.execute(
        update(Comparison)
        .where(ids, Comparison.flagged)
        .where(
            ~exists().where(
                Judgment.comparison_id == Comparison.id,
                Judgment.superseded_at.is_(None),
                func.jsonb_array_length(Judgment.flags) > 0,
            )
        )
        .values(flagged=False),
        execution_options={"synchronize_session": False},
    )
    opened = session.execute(
        update(Comparison)
        .where(ids, Comparison.state.in_(("settled", "in_review")), Comparison.purpose != "repeat")
        .where(Comparison.judgment_count < Comparison.overlap)
        .values(
            state="open",
            settled_at=None,
            agreement=None,
            consensus=None,
            p_b=None,
            p_tie=None,
            review_reason=None,
            labeler_id=None,
        )
        .returning(Comparison.id),
        execution_options={"synchronize_session": False},
    )
    return len(opened.all())


def release_kept(session: Session, project_id: int, labeler_id: int) -> None:
    """Comparisons nobody has judged yet that only this labeler would have been offered: to everybody."""
    session.execute(
        update(Comparison)
        .where(Comparison.project_id == project_id, Comparison.labeler_id == labeler_id)
        .where(Comparison.state == "open", Comparison.purpose != "repeat")
        .values(labeler_id=None),
        execution_options={"synchronize_session": False},
    )
    session.execute(
        update(Comparison)
        .where(Comparison.project_id == project_id, Comparison.labeler_id == labeler_id)
        .where(Comparison.state == "open", Comparison.purpose == "repeat")
        .values(state="withdrawn"),
        execution_options={"synchronize_session": False},
    )


class UsedIn(NamedTuple):
    """A snapshot that holds judgments of a labeler, and the round that read it, if any."""

    snapshot_id: int
    digest: str
    created_at: datetime
    judgments: int
    round_number: int | None
    round_id: int | None


def snapshots_with(session: Session, project_id: int, labeler_id: int) -> list[UsedIn]:
    """Snapshots frozen while a judgment of theirs on a comparison in it was live."""
    held = (
        select(SnapshotComparison.snapshot_id, func.count().label("judgments"))
        .join(Snapshot, Snapshot.id == SnapshotComparison.snapshot_id)
        .join(Judgment, Judgment.comparison_id == SnapshotComparison.comparison_id)
        .where(Snapshot.project_id == project_id, Judgment.labeler_id == labeler_id)
        .where(Judgment.created_at <= Snapshot.created_at)
        .where(or_(Judgment.superseded_at.is_(None), Judgment.superseded_at > Snapshot.created_at))
        .group_by(SnapshotComparison.snapshot_id)
        .subquery()
    )
    found = (
        select(Snapshot.id, Snapshot.digest, Snapshot.created_at, held.c.judgments, Round.number, Round.id)
        .join(held, held.c.snapshot_id == Snapshot.id)
        .outerjoin(Round, Round.snapshot_id == Snapshot.id)
        .order_by(Snapshot.id)
    )
    return [UsedIn(*row) for row in session.execute(found)]


class Made(NamedTuple):
    """A model, the round that made it, and what that round began with."""

    id: int
    name: str
    role: str
    parent_id: int | None
    round_id: int | None
    round_number: int | None
    began_with: tuple[int, ...]


def models(session: Session, project_id: int) -> list[Made]:
    """All models of the project, oldest first."""
    found = (
        select(
            ModelVersion.id,
            ModelVersion.name,
            ModelVersion.role,
            ModelVersion.parent_id,
            Round.id,
            Round.number,
            Round.policy_before_id,
            Round.reward_model_id,
            Round.reference_id,
        )
        .outerjoin(Run, Run.id == ModelVersion.run_id)
        .outerjoin(Round, Round.id == Run.round_id)
        .where(ModelVersion.project_id == project_id)
        .order_by(ModelVersion.id)
    )
    return [
        Made(*row[:6], tuple(id_ for id_ in row[6:] if id_ is not None and id_ != row[0]))
        for row in session.execute(found)
    ]


def paused(session: Session, project_id: int) -> int:
    """How many labelers wait for an admin to let them go on."""
    wanted = select(func.count()).where(ProjectLabeler.project_id == project_id, ProjectLabeler.state == "paused")
    return session.scalar(wanted) or 0


def lock_labeler(session: Session, labeler_id: int) -> bool:
    """Whether there is such a user; locked first of all, as by every task given out and every answer."""
    wanted = select(User.id).where(User.id == labeler_id).with_for_update(key_share=True)
    return session.scalar(wanted) is not None

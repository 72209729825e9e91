"""SQL of taking a labeler out: what that touches, and where their judgments went before."""

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import and_, exists, func, or_, select, text, update
from sqlalchemy.orm import Session

from app.models import Comparison, Judgment, ModelVersion, Round, Run, Snapshot, SnapshotComparison


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

"""SQL of removing a labeler: their judgments, and what they wrote."""

from typing import NamedTuple

from sqlalchemy import ColumnElement, Select, Update, and_, delete, exists, func, select, text, update
from sqlalchemy.orm import Session, aliased

from app.models import Comparison, Demonstration, DemonstrationTask, Judgment, Lease, Prompt, RedTeamAttempt, Thumb
from app.models.prompt import WITHDRAWN

RED_TEAM = "red team"  # source of a prompt that was a red-team attempt


class Affected(NamedTuple):
    """judgments: the labeler's live judgments. comparisons: the comparisons they are on. reopened: comparisons that
    return to the queue for somebody else. withdrawn: hidden repeats, which nobody else can answer. thumbs: the
    labeler's live thumbs."""

    judgments: int
    comparisons: int
    reopened: int
    withdrawn: int
    thumbs: int


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
    thumbs = session.scalar(
        select(func.count())
        .select_from(Thumb)
        .where(Thumb.project_id == project_id, Thumb.labeler_id == labeler_id, Thumb.superseded_at.is_(None))
    )
    # A labeler has one live judgment per comparison, so both counts are equal.
    return Affected(judgments, judgments, reopened, repeats, thumbs or 0)


def take_out(session: Session, project_id: int, labeler_id: int) -> list[int]:
    """End the labeler's leases and supersede their judgments and thumbs in the project.

    Returns ids of the comparisons that the judgments were on. Comparisons are locked first, by ascending id.
    """
    own = {"project": project_id, "labeler": labeler_id}
    ids = list(
        session.scalars(
            text(
                """
                SELECT id FROM comparison WHERE project_id = :project AND id IN (
                    SELECT comparison_id FROM judgment WHERE labeler_id = :labeler AND superseded_at IS NULL
                    UNION SELECT comparison_id FROM lease WHERE labeler_id = :labeler AND state = 'live'
                ) ORDER BY id FOR NO KEY UPDATE
                """
            ),
            own,
        )
    )
    held = {"ids": ids, "labeler": labeler_id}
    session.execute(
        text(
            "UPDATE lease SET state = 'released', expires_at = least(expires_at, now())"
            " WHERE comparison_id = ANY(:ids) AND labeler_id = :labeler AND state = 'live'"
        ),
        held,
    )
    session.execute(
        text(
            "UPDATE thumb SET superseded_at = now(), superseded_for = 'removed'"
            " WHERE project_id = :project AND labeler_id = :labeler AND superseded_at IS NULL"
        ),
        own,
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


def give_back(session: Session, project_id: int, labeler_id: int) -> None:
    """End the labeler's leases and release the prompts that they write for. Comparisons are locked first."""
    held = exists().where(Lease.comparison_id == Comparison.id, Lease.labeler_id == labeler_id, Lease.state == "live")
    locked = select(Comparison.id).where(Comparison.project_id == project_id, held).order_by(Comparison.id)
    ids = session.scalars(locked.with_for_update(key_share=True)).all()
    own = update(Lease).where(Lease.comparison_id.in_(ids), Lease.labeler_id == labeler_id, Lease.state == "live")
    ended = func.least(Lease.expires_at, func.now())
    session.execute(own.values(state="released", expires_at=ended), execution_options={"synchronize_session": False})
    writing = (DemonstrationTask.project_id == project_id, DemonstrationTask.labeler_id == labeler_id)
    session.execute(
        update(DemonstrationTask).where(*writing).values(labeler_id=None, expires_at=None),
        execution_options={"synchronize_session": False},
    )


def reopen(session: Session, comparison_ids: list[int]) -> int:
    """Reopen the comparisons that now lack judgments; return how many.

    Repeats are withdrawn, because nobody else can answer them. Comparisons kept for the removed labeler are offered to
    everybody.
    """
    ids = text("comparison.id = ANY(:ids)").bindparams(ids=comparison_ids)
    session.execute(
        update(Comparison).where(ids, Comparison.purpose == "repeat").values(state="withdrawn"),
        execution_options={"synchronize_session": False},
    )
    # A content flag set only by removed judgments no longer needs a reviewer.
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
    """Offer the open comparisons that were kept for this labeler to everybody."""
    session.execute(
        _kept(project_id, labeler_id).where(Comparison.purpose != "repeat").values(labeler_id=None),
        execution_options={"synchronize_session": False},
    )


def withdraw_repeats(session: Session, project_id: int, labeler_id: int) -> None:
    """Withdraw the repeats that the labeler has not answered. Nobody else can answer them."""
    session.execute(
        _kept(project_id, labeler_id).where(Comparison.purpose == "repeat").values(state="withdrawn"),
        execution_options={"synchronize_session": False},
    )


def _kept(project_id: int, labeler_id: int) -> Update:
    kept = update(Comparison).where(Comparison.project_id == project_id, Comparison.labeler_id == labeler_id)
    return kept.where(Comparison.state == "open")


class Written(NamedTuple):
    """Counts of a labeler's texts in a project that still stand: demonstrations, red-team attempts, and prompts
    accepted from these attempts."""

    demonstrations: int
    attempts: int
    prompts: int


def own_prompts(project_id: int, labeler_id: int) -> Select[int]:
    """Select prompts that came from red-team attempts of this labeler and of nobody else."""
    mine, other = aliased(RedTeamAttempt), aliased(RedTeamAttempt)
    return (
        select(Prompt.id)
        .join(mine, mine.prompt_id == Prompt.id)
        .where(mine.project_id == project_id, mine.author_id == labeler_id, Prompt.source == RED_TEAM)
        .where(~exists().where(other.prompt_id == Prompt.id, other.author_id != labeler_id))
        .distinct()
    )


def written(session: Session, project_id: int, labeler_id: int) -> Written:
    standing = own_prompts(project_id, labeler_id).where(Prompt.split != WITHDRAWN)
    counts = (
        select(func.count()).where(*_demonstrations(project_id, labeler_id)),
        select(func.count()).where(*_attempts(project_id, labeler_id)),
        select(func.count()).select_from(standing.subquery()),
    )
    return Written(*session.execute(select(*(count.scalar_subquery() for count in counts))).one())


def _demonstrations(project_id: int, labeler_id: int) -> tuple[ColumnElement[bool], ...]:
    of_them = (Demonstration.project_id == project_id, Demonstration.author_id == labeler_id)
    return *of_them, Demonstration.state != "withdrawn"


def _attempts(project_id: int, labeler_id: int) -> tuple[ColumnElement[bool], ...]:
    of_them = (RedTeamAttempt.project_id == project_id, RedTeamAttempt.author_id == labeler_id)
    return *of_them, RedTeamAttempt.withdrawn_at.is_(None)


def withdraw_written(session: Session, project_id: int, labeler_id: int, admin_id: int, reason: str) -> None:
    """Withdraw what the labeler wrote, and the comparisons and writing tasks made from their prompts.

    What others wrote on these prompts stays, but nothing reads it, because the prompt's split becomes `withdrawn`.
    """
    quietly = {"synchronize_session": False}
    decided = {"state": "withdrawn", "reviewer_id": admin_id, "reviewed_at": func.now(), "review_note": reason}
    own = update(Demonstration).where(*_demonstrations(project_id, labeler_id))
    session.execute(own.values(decided), execution_options=quietly)
    prompts = list(session.scalars(own_prompts(project_id, labeler_id)))
    attempts = update(RedTeamAttempt).where(*_attempts(project_id, labeler_id))
    session.execute(attempts.values(withdrawn_at=func.now()), execution_options=quietly)
    about = (Comparison.prompt_id.in_(prompts), Comparison.state != "withdrawn")
    session.execute(select(Comparison.id).where(*about).order_by(Comparison.id).with_for_update(key_share=True))
    compared = update(Comparison).where(*about)
    session.execute(compared.values(state="withdrawn", flagged=False), execution_options=quietly)
    session.execute(
        delete(DemonstrationTask).where(DemonstrationTask.prompt_id.in_(prompts)), execution_options=quietly
    )
    session.execute(update(Prompt).where(Prompt.id.in_(prompts)).values(split=WITHDRAWN), execution_options=quietly)

"""SQL of the full export, by kind of line. Columns are named like the line's fields, with ids instead of numbers.

Withdrawn data and data of removed people are left out: prompts whose author was removed with everything on them,
judgments and thumbs of removed labelers, and withdrawn demonstrations.
"""

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Select, String, case, func, literal, or_, select, text, union
from sqlalchemy.orm import Session

from app.models import (
    Adjudication,
    Comparison,
    Completion,
    Demonstration,
    Judgment,
    ModelVersion,
    Project,
    Prompt,
    Ranking,
    Rubric,
    Thumb,
    User,
)
from app.models.prompt import WITHDRAWN

Row = dict[str, Any]
AT_ONCE = 1000  # rows fetched together


def _rows(session: Session, query: Select[*tuple[Any, ...]]) -> Iterator[Row]:
    for row in session.execute(query.execution_options(yield_per=AT_ONCE)).mappings():
        yield dict(row)


def addresses(session: Session, like: str) -> set[str]:
    """Return addresses of projects that begin like this."""
    return set(session.scalars(select(Project.slug).where(Project.slug.startswith(like, autoescape=True))))


def rubrics(session: Session, project_id: int) -> list[Rubric]:
    found = select(Rubric).where(Rubric.project_id == project_id, Rubric.version.is_not(None))
    return list(session.scalars(found.order_by(Rubric.version)))


def labelers(session: Session, project_id: int) -> Iterator[Row]:
    """Yield everybody whom another line of the export refers to."""
    compared = select(Comparison.id).where(Comparison.project_id == project_id)
    ids = union(
        select(Judgment.labeler_id).where(Judgment.comparison_id.in_(compared), _not_removed(Judgment.superseded_for)),
        select(Adjudication.reviewer_id).where(Adjudication.comparison_id.in_(compared)),
        select(Demonstration.author_id).where(Demonstration.project_id == project_id),
        select(Demonstration.reviewer_id).where(Demonstration.project_id == project_id),
        select(Thumb.labeler_id).where(Thumb.project_id == project_id, _not_removed(Thumb.superseded_for)),
    ).subquery()
    return _rows(session, select(User.id, User.name, User.kind).where(User.id.in_(select(ids))).order_by(User.id))


def prompts(session: Session, project_id: int) -> Iterator[Row]:
    names = ("id", "messages", "split", "domain", "difficulty", "safety_category", "source", "created_at")
    columns = [getattr(Prompt, name) for name in names]
    found = select(*columns).where(Prompt.project_id == project_id, Prompt.split != WITHDRAWN)
    return _rows(session, found.order_by(Prompt.id))


def responses(session: Session, project_id: int) -> Iterator[Row]:
    found = (
        select(
            Completion.id,
            Completion.prompt_id.label("prompt"),
            Completion.text,
            func.coalesce(func.nullif(Completion.source, ""), ModelVersion.name, literal("", String)).label("source"),
            Completion.finish_reason,
            Completion.n_tokens,
            Completion.seed,
            Completion.sampling,
            Completion.ai_revised,
            Completion.created_at,
        )
        .join(Prompt, Prompt.id == Completion.prompt_id)
        .outerjoin(ModelVersion, ModelVersion.id == Completion.model_version_id)
        .where(Prompt.project_id == project_id, Prompt.split != WITHDRAWN)
    )
    return _rows(session, found.order_by(Completion.id))


def rankings(session: Session, project_id: int) -> Iterator[Row]:
    found = select(Ranking.id, Ranking.prompt_id.label("prompt"), Ranking.size, Ranking.created_at)
    found = found.join(Prompt, Prompt.id == Ranking.prompt_id)
    return _rows(session, found.where(Ranking.project_id == project_id, Prompt.split != WITHDRAWN).order_by(Ranking.id))


def comparisons(session: Session, project_id: int) -> Iterator[Row]:
    same = (
        "id purpose state overlap overlap_max grown offered selection priority gold digest agreement p_b p_tie"
        " reward_p_b reward_trained review_reason flagged conflict_dismissed created_at settled_at"
    )
    found = (
        select(
            *(getattr(Comparison, name) for name in same.split()),
            Comparison.prompt_id.label("prompt"),
            Comparison.completion_a_id.label("response_a"),
            Comparison.completion_b_id.label("response_b"),
            Rubric.version.label("rubric_version"),
            Comparison.repeat_of_id.label("repeat_of"),
            Comparison.relabel_of_id.label("relabel_of"),
            Comparison.ranking_id.label("ranking"),
            Comparison.external_id.label("pair_id"),
            Comparison.consensus.label("preference"),
            Adjudication.reviewer_id,
            Adjudication.verdict,
            Adjudication.note,
            Adjudication.created_at.label("decided_at"),
        )
        .join(Prompt, Prompt.id == Comparison.prompt_id)
        .join(Rubric, Rubric.id == Comparison.rubric_id)
        .outerjoin(Adjudication, Adjudication.comparison_id == Comparison.id)
        .where(Comparison.project_id == project_id, Prompt.split != WITHDRAWN)
    )
    return _rows(session, found.order_by(Comparison.id))


def judgments(session: Session, project_id: int) -> Iterator[Row]:
    same = "preference both_bad aspects flags rationale duration_ms superseded_at superseded_for"
    found = (
        select(
            *(getattr(Judgment, name) for name in same.split()),
            Judgment.comparison_id.label("comparison"),
            Judgment.labeler_id.label("labeler"),
            case((Judgment.swapped.is_(True), "b"), (Judgment.swapped.is_(False), "a")).label("shown_first"),
            Judgment.created_at.label("submitted_at"),
        )
        .join(Comparison, Comparison.id == Judgment.comparison_id)
        .join(Prompt, Prompt.id == Comparison.prompt_id)
        .where(Comparison.project_id == project_id, Prompt.split != WITHDRAWN, _not_removed(Judgment.superseded_for))
    )
    return _rows(session, found.order_by(Judgment.id))


def demonstrations(session: Session, project_id: int) -> Iterator[Row]:
    same = "text written source state ai_revised duration_ms review_note reviewed_at created_at"
    found = (
        select(
            *(getattr(Demonstration, name) for name in same.split()),
            Demonstration.prompt_id.label("prompt"),
            Demonstration.author_id.label("author"),
            Demonstration.completion_id.label("response"),
            Demonstration.reviewer_id.label("reviewer"),
            Rubric.version.label("rubric_version"),
        )
        .join(Prompt, Prompt.id == Demonstration.prompt_id)
        .outerjoin(Rubric, Rubric.id == Demonstration.rubric_id)
        .where(Demonstration.project_id == project_id, Demonstration.state != "withdrawn", Prompt.split != WITHDRAWN)
    )
    return _rows(session, found.order_by(Demonstration.id))


def thumbs(session: Session, project_id: int) -> Iterator[Row]:
    same = "liked rationale duration_ms created_at superseded_at"
    found = (
        select(
            *(getattr(Thumb, name) for name in same.split()),
            Thumb.completion_id.label("response"),
            Thumb.labeler_id.label("labeler"),
        )
        .join(Completion, Completion.id == Thumb.completion_id)
        .join(Prompt, Prompt.id == Completion.prompt_id)
        .where(Thumb.project_id == project_id, Prompt.split != WITHDRAWN, _not_removed(Thumb.superseded_for))
    )
    return _rows(session, found.order_by(Thumb.id))


def _not_removed(reason: Any) -> Any:
    return or_(reason.is_(None), reason != "removed")


def new_comparison_ids(session: Session, n: int) -> list[int]:
    """Reserve ids for comparisons that refer to one another, ascending."""
    ids = func.nextval(func.pg_get_serial_sequence("comparison", "id"))
    return sorted(session.scalars(select(ids).select_from(func.generate_series(1, n))))


def wrong_digest(session: Session, project_id: int) -> int | None:
    """Return the first comparison whose digest does not match its content (`PairRecord.digest`); None if all match.

    With a wrong digest, imports would add judgments to it that are about another pair.
    """
    query = text(
        """
        SELECT c.id
        FROM comparison c
        JOIN prompt p ON p.id = c.prompt_id
        JOIN completion a ON a.id = c.completion_a_id
        JOIN completion b ON b.id = c.completion_b_id
        WHERE c.project_id = :project_id AND c.digest <> encode(sha256(
            convert_to(p.digest, 'UTF8') || '\\x00'
            || convert_to(a.text, 'UTF8') || '\\x00'
            || convert_to(b.text, 'UTF8') || '\\x00'
            || convert_to(coalesce(c.external_id, ''), 'UTF8')
        ), 'hex')
        ORDER BY c.id LIMIT 1
        """
    )
    return session.scalar(query, {"project_id": project_id})

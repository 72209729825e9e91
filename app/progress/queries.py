"""SQL for comparing two rounds."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session, aliased

from app.models import Completion, Prompt, SnapshotComparison


def shared_comparisons(session: Session, first: int, second: int) -> int:
    """Count the comparisons that are in both snapshots."""
    a, b = aliased(SnapshotComparison), aliased(SnapshotComparison)
    query = select(func.count()).select_from(a).join(b, b.comparison_id == a.comparison_id)
    return session.scalar(query.where(a.snapshot_id == first, b.snapshot_id == second)) or 0


def answered_by_both(session: Session, first: int, second: int, offset: int, most: int) -> Sequence[Any]:
    """Return prompts that both models were sampled on, held-out ones first, with each model's oldest response.

    Args:
        first, second: ids of two models.
    """
    a, b = (_oldest(model_id).subquery() for model_id in (first, second))
    said_a, said_b = aliased(Completion), aliased(Completion)
    query = (
        select(Prompt.id, Prompt.messages, Prompt.split, Prompt.domain, said_a.text.label("a"), said_b.text.label("b"))
        .join(a, a.c.prompt_id == Prompt.id)
        .join(b, b.c.prompt_id == Prompt.id)
        .join(said_a, said_a.id == a.c.id)
        .join(said_b, said_b.id == b.c.id)
        .order_by(Prompt.split != "heldout", Prompt.id)
    )
    return session.execute(query.offset(offset).limit(most)).all()


def _oldest(model_id: int) -> Any:
    sampled = Completion.model_version_id == model_id, Completion.run_id.is_not(None)
    return (
        select(Completion.prompt_id, func.min(Completion.id).label("id")).where(*sampled).group_by(Completion.prompt_id)
    )

"""SQL of the thumbs that rounds read."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ARRAY, BigInteger, func, insert, literal, select
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.orm import Session

from app.models import Completion, Prompt, SnapshotThumb, Thumb


def thumbs(session: Session, project_id: int) -> Sequence[Any]:
    """Responses to train prompts that have live thumbs: how many up and down, with the prompt's messages and tags."""
    given = (
        select(
            Thumb.completion_id,
            func.count().filter(Thumb.liked).label("up"),
            func.count().filter(~Thumb.liked).label("down"),
            func.array_agg(aggregate_order_by(Thumb.id, Thumb.id)).label("thumbs"),
        )
        .where(Thumb.project_id == project_id, Thumb.superseded_at.is_(None))
        .group_by(Thumb.completion_id)
        .subquery()
    )
    query = (
        select(
            Completion.id,
            Completion.text,
            given.c.up,
            given.c.down,
            given.c.thumbs,
            Prompt.messages,
            Prompt.split,
            Prompt.domain,
            Prompt.difficulty,
            Prompt.safety_category,
        )
        .join(given, given.c.completion_id == Completion.id)
        .join(Prompt, Prompt.id == Completion.prompt_id)
        .where(Prompt.split == "train")
        .order_by(Completion.id)
    )
    return session.execute(query).all()


def add_snapshot_thumbs(session: Session, snapshot_id: int, thumb_ids: list[int]) -> None:
    held = select(literal(snapshot_id, BigInteger), func.unnest(literal(thumb_ids, ARRAY(BigInteger))))
    session.execute(insert(SnapshotThumb).from_select(["snapshot_id", "thumb_id"], held))

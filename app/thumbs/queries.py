"""SQL of thumbs."""

from datetime import UTC, datetime
from typing import NamedTuple

from sqlalchemy import BigInteger, exists, func, literal, select, update
from sqlalchemy.orm import Session, aliased

from app.models import Completion, Prompt, Thumb


class Response(NamedTuple):
    """A response to rate with a thumb, and its prompt."""

    id: int
    text: str
    prompt: Prompt


# Held-out prompts are never trained on, and thumbs have no other use.
_ASKED = (Prompt.split == "train",)


def next_response(session: Session, project_id: int, labeler_id: int, seed: int) -> Response | None:
    """Return a response that has no thumb yet; None if there is none.

    The order is random. If the current policy's responses came first, labelers could recognize the new response in a
    comparison.

    Args:
        seed: 64-bit seed of the order. It must stay secret: somebody who knows it could infer the responses' ids from
            the order, and so which response is newer.
    """
    given, mine = aliased(Thumb), aliased(Thumb)
    order = func.hashint8extended(Completion.id, literal(seed, BigInteger))
    found = (
        select(Completion.id, Completion.text, Prompt)
        .join(Prompt, Prompt.id == Completion.prompt_id)
        .where(Prompt.project_id == project_id, *_ASKED, Completion.text.regexp_match(r"\S"))
        .where(~exists().where(given.completion_id == Completion.id, given.superseded_at.is_(None)))
        .where(~exists().where(mine.completion_id == Completion.id, mine.labeler_id == labeler_id))
        .order_by(order)
        .limit(1)
    )
    row = session.execute(found).one_or_none()
    return Response._make(row) if row else None


def response(session: Session, project_id: int, prompt_id: int, digest: str) -> Response | None:
    """Return the first response to the prompt whose text has this SHA-256."""
    found = (
        select(Completion.id, Completion.text, Prompt)
        .join(Prompt, Prompt.id == Completion.prompt_id)
        .where(Prompt.id == prompt_id, Prompt.project_id == project_id, *_ASKED)
        .where(func.encode(func.sha256(func.convert_to(Completion.text, "UTF8")), "hex") == digest)
        .order_by(Completion.id)
        .limit(1)
    )
    row = session.execute(found).one_or_none()
    return Response._make(row) if row else None


def live(session: Session, completion_id: int, labeler_id: int) -> Thumb | None:
    found = select(Thumb).where(Thumb.completion_id == completion_id, Thumb.labeler_id == labeler_id)
    return session.scalars(found.where(Thumb.superseded_at.is_(None))).one_or_none()


def supersede(session: Session, thumb_id: int) -> None:
    session.execute(
        update(Thumb).where(Thumb.id == thumb_id).values(superseded_at=func.now(), superseded_for="edited"),
        execution_options={"synchronize_session": False},
    )


def last(session: Session, project_id: int, labeler_id: int) -> tuple[Response, Thumb] | None:
    """Return the response that got the labeler's last thumb, and the thumb."""
    found = (
        select(Completion.id, Completion.text, Prompt, Thumb)
        .join(Completion, Completion.id == Thumb.completion_id)
        .join(Prompt, Prompt.id == Completion.prompt_id)
        .where(Thumb.project_id == project_id, Thumb.labeler_id == labeler_id, Thumb.superseded_at.is_(None), *_ASKED)
        .order_by(Thumb.id.desc())
        .limit(1)
    )
    row = session.execute(found).one_or_none()
    return (Response(*row[:3]), row[3]) if row else None


def given_today(session: Session, project_id: int, labeler_id: int) -> int:
    begin = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    mine = (Thumb.project_id == project_id, Thumb.labeler_id == labeler_id, Thumb.superseded_at.is_(None))
    return session.scalar(select(func.count()).where(*mine, Thumb.created_at >= begin)) or 0

"""The playground: staff talk to two of a project's models side by side."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, SmallInteger
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Id, Json, Now


class PlaygroundChat(Base):
    """A conversation with two models, each of which sees only its own answers. `first` is on the left.

    In a blind chat, the sides are random and the names are hidden until the user votes.
    """

    __tablename__ = "playground_chat"
    __table_args__ = (
        CheckConstraint("first_id <> second_id", name="two_models"),
        Index("ix_playground_chat_project", "project_id", "id"),
    )

    id: Mapped[Id]
    project_id: Mapped[int] = mapped_column(ForeignKey("project.id"))
    owner_id: Mapped[int] = mapped_column(ForeignKey("user_account.id"))
    first_id: Mapped[int] = mapped_column(ForeignKey("model_version.id"))
    second_id: Mapped[int] = mapped_column(ForeignKey("model_version.id"))
    is_blind: Mapped[bool]
    created_at: Mapped[Now]


class PlaygroundTurn(Base):
    """One message of a chat and both answers: text, finish_reason and n_tokens, as in a completion.

    vote: -1 if the first answer is better, 1 if the second is, 0 for neither. comparison_id: the comparison that asks
    labelers about the two answers, if any.
    """

    __tablename__ = "playground_turn"
    __table_args__ = (
        CheckConstraint("vote BETWEEN -1 AND 1", name="vote_range"),
        CheckConstraint("vote IS NULL OR first IS NOT NULL AND second IS NOT NULL", name="voted_has_answers"),
        Index("ix_playground_turn_chat", "chat_id", "id"),
    )

    id: Mapped[Id]
    chat_id: Mapped[int] = mapped_column(ForeignKey("playground_chat.id"))
    text: Mapped[str]
    run_id: Mapped[int] = mapped_column(ForeignKey("run.id"), index=True)
    first: Mapped[Json | None]
    second: Mapped[Json | None]
    vote: Mapped[int | None] = mapped_column(SmallInteger)
    voted_at: Mapped[datetime | None]
    comparison_id: Mapped[int | None] = mapped_column(ForeignKey("comparison.id"), index=True)
    idempotency_key: Mapped[UUID] = mapped_column(unique=True)
    created_at: Mapped[Now]

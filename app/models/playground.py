"""The playground: staff talk to two of a project's models side by side."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, SmallInteger
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Id, Json, Now


class PlaygroundChat(Base):
    """A conversation with two models, each of which answers its own line of it. `first` stands left. If the chat is
    blind, chance has put it there, and the names are hidden until somebody votes."""

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
    """What was said in a chat, and both answers: text, finish_reason and n_tokens, as a completion's.

    vote: -1 the first answer is better, 1 the second, 0 neither. comparison_id: where labelers are asked about the two.
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

"""SQL of the playground."""

from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session, aliased

from app.access.queries import may_label
from app.models import ModelVersion, PlaygroundChat, PlaygroundTurn, Run, User

MOST_CHATS = 50
_first, _second = aliased(ModelVersion), aliased(ModelVersion)


class Chat(NamedTuple):
    """A chat with its owner, both models, and its numbers of turns and votes."""

    chat: PlaygroundChat
    owner: User
    first: ModelVersion
    second: ModelVersion
    turns: int
    votes: int

    @property
    def is_hidden(self) -> bool:
        """Tell whether it is still hidden which model is which."""
        return self.chat.is_blind and not self.votes


class Turn(NamedTuple):
    turn: PlaygroundTurn
    run: Run

    @property
    def state(self) -> str:
        """Return waiting, answered or failed."""
        if self.turn.first is not None and self.turn.second is not None:
            return "answered"
        return "failed" if self.run.state in ("failed", "cancelled", "succeeded") else "waiting"


def _chats(project_id: int) -> Any:
    counts = [
        select(func.count(column)).where(PlaygroundTurn.chat_id == PlaygroundChat.id).scalar_subquery()
        for column in (PlaygroundTurn.id, PlaygroundTurn.vote)
    ]
    found = select(PlaygroundChat, User, _first, _second, *counts)
    found = found.join(User, User.id == PlaygroundChat.owner_id).join(_first, _first.id == PlaygroundChat.first_id)
    return found.join(_second, _second.id == PlaygroundChat.second_id).where(PlaygroundChat.project_id == project_id)


def chats(session: Session, project_id: int) -> list[Chat]:
    """Return the newest chats of a project."""
    rows = session.execute(_chats(project_id).order_by(PlaygroundChat.id.desc()).limit(MOST_CHATS))
    return [Chat(*row) for row in rows]


def chat(session: Session, project_id: int, chat_id: int) -> Chat | None:
    row = session.execute(_chats(project_id).where(PlaygroundChat.id == chat_id)).one_or_none()
    return Chat(*row) if row else None


def lock(session: Session, chat_id: int) -> None:
    session.execute(select(PlaygroundChat.id).where(PlaygroundChat.id == chat_id).with_for_update(key_share=True))


def lock_owner(session: Session, owner_id: int) -> None:
    """Let only one transaction at a time count the messages of this person's chats."""
    session.execute(select(User.id).where(User.id == owner_id).with_for_update(key_share=True))


def count_waiting(session: Session, owner_id: int) -> int:
    """Count messages in this person's chats that wait for answers, in all projects, because they share one queue."""
    waiting = _of_owner(owner_id).join(Run, Run.id == PlaygroundTurn.run_id)
    return session.scalar(waiting.where(Run.state.in_(("queued", "running")))) or 0


def count_lately(session: Session, owner_id: int) -> int:
    """Count messages of the last hour in this person's chats."""
    return session.scalar(_of_owner(owner_id).where(PlaygroundTurn.created_at > func.now() - timedelta(hours=1))) or 0


def _of_owner(owner_id: int) -> Select[int]:
    found = select(func.count()).select_from(PlaygroundTurn)
    return found.join(PlaygroundChat, PlaygroundChat.id == PlaygroundTurn.chat_id).where(
        PlaygroundChat.owner_id == owner_id
    )


def count_other_labelers(session: Session, project_id: int, user_ids: Collection[int]) -> int:
    """Count the people who get tasks in a project, apart from these users."""
    others = select(func.count()).select_from(User).where(*may_label(project_id), User.id.not_in(user_ids))
    return session.scalar(others) or 0


def turns(session: Session, chat_id: int) -> list[Turn]:
    """Return the turns of a chat, oldest first."""
    found = select(PlaygroundTurn, Run).join(Run, Run.id == PlaygroundTurn.run_id)
    rows = session.execute(
        found.where(PlaygroundTurn.chat_id == chat_id).order_by(PlaygroundTurn.id),
        execution_options={"populate_existing": True},
    )
    return [Turn(*row) for row in rows]


def turn_by_key(session: Session, key: UUID) -> PlaygroundTurn | None:
    return session.scalars(select(PlaygroundTurn).where(PlaygroundTurn.idempotency_key == key)).one_or_none()


def models(session: Session, project_id: int, roles: Sequence[str]) -> list[ModelVersion]:
    """Return a project's models that can chat, newest first."""
    found = select(ModelVersion).where(ModelVersion.project_id == project_id, ModelVersion.role.in_(roles))
    return list(session.scalars(found.order_by(ModelVersion.id.desc())))

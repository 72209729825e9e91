"""Prompts: their form, their digest, and adding them so that a conversation stands once in a project."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from app.errors import InvalidInput
from app.models import Prompt
from app.prompts import queries

Messages = Sequence[dict[str, str]]
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class NewPrompt:
    """A prompt to add; the fields are those of `app.models.Prompt`."""

    messages: Messages
    split: str = "train"
    domain: str = ""
    difficulty: str = "easy"
    safety_category: str | None = None
    source: str = ""


def digest(messages: Messages) -> str:
    """SHA-256 of a conversation, in hex: the same for the same roles and contents."""
    canonical = json.dumps([[m["role"], m["content"]] for m in messages], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def check_messages(messages: Messages) -> None:
    """Refuses a conversation that does not ask for one more assistant turn.

    Raises:
        InvalidInput: no message, an unknown role, an empty turn, a system message that is not the first, two turns in a
            row by the same side, or the assistant's turn last.
    """
    turns = [m["role"] for m in messages]
    if unknown := set(turns) - set(ROLES):
        raise InvalidInput(f"the role “{sorted(unknown)[0]}” is not one of {', '.join(ROLES)}")
    if any(not m["content"].strip() for m in messages):
        raise InvalidInput("a message of the prompt is empty")
    if "system" in turns[1:]:
        raise InvalidInput("a system message can only come first")
    dialogue = turns[1:] if turns[:1] == ["system"] else turns
    if not dialogue:
        raise InvalidInput("the prompt is empty")
    # Chat templates refuse anything else, so such a prompt could be labeled but never trained on.
    if dialogue[0] != "user" or any(a == b for a, b in itertools.pairwise(dialogue)):
        raise InvalidInput("user and assistant must take turns, the user first")
    if dialogue[-1] != "user":
        raise InvalidInput("the prompt ends with the assistant's turn, so it asks for nothing")


def add(session: Session, project_id: int, messages: Messages, **tags: str | None) -> Prompt:
    """The prompt with these messages, added when the project does not have it; `tags` are NewPrompt's other fields.

    A prompt that is there already keeps its split and tags.
    """
    new = NewPrompt(messages, **{name: value for name, value in tags.items() if value is not None})
    add_many(session, project_id, [new])
    return queries.by_digest(session, project_id, digest(messages))


def add_many(session: Session, project_id: int, prompts: Iterable[NewPrompt]) -> list[int]:
    """Adds those prompts the project does not have; of equal ones in `prompts` the first counts.

    Returns:
        ids of those that were added.

    Raises:
        InvalidInput: as `check_messages`.
    """
    rows: dict[str, dict[str, object]] = {}
    for new in prompts:
        check_messages(new.messages)
        row = {name: getattr(new, name) for name in NewPrompt.__slots__}
        row |= {"project_id": project_id, "messages": list(new.messages), "digest": digest(new.messages)}
        rows.setdefault(str(row["digest"]), row)
    return queries.insert_new(session, list(rows.values()))

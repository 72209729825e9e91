"""Conversations written as text: "\\n\\nHuman: ...\\n\\nAssistant: ...", the way HH-RLHF has them."""

import re
from collections.abc import Sequence

Turns = tuple[tuple[str, str], ...]  # (role, text)

_MARK = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def turns_of(value: object, whole: str | None = None) -> Turns:
    """The turns of a transcript or of a list of messages; with `whole`, a string is one turn of that role.

    Raises:
        ValueError: neither of these, or a transcript that does not begin with a turn's mark.
    """
    if isinstance(value, str):
        return ((whole, value.strip()),) if whole else _transcript(value)
    if isinstance(value, Sequence) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in value
    ):
        return tuple((m["role"], m["content"].strip()) for m in value)
    raise ValueError("must be a transcript or a list of messages with role and content")


def _transcript(text: str) -> Turns:
    before, *parts = _MARK.split(text)
    if before.strip() or not parts:
        raise ValueError('a transcript must begin with "Human:" (and turns part at "\\n\\nHuman:", "\\n\\nAssistant:")')
    return tuple((_ROLES[mark], said.strip()) for mark, said in zip(parts[::2], parts[1::2], strict=True))


def join_runs(turns: Turns) -> Turns:
    """The same conversation with turns in a row by one speaker made into one, since chat templates want alternation."""
    joined: list[tuple[str, str]] = []
    for role, text in turns:
        if joined and joined[-1][0] == role:
            joined[-1] = (role, f"{joined[-1][1]}\n\n{text}".strip())
        else:
            joined.append((role, text))
    return tuple(joined)

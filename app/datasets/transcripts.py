"""Conversations in import files: lists of messages, ShareGPT turns, and transcripts with HH-RLHF's marks.

A transcript is a text like "\\n\\nHuman: Best bread?\\n\\nAssistant: Rye.". The marks, and one space after each, are
not part of the messages. Everything else is kept as it is, including spaces and line breaks.
"""

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence

Turns = tuple[tuple[str, str], ...]  # (role, text)

_MARK = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant): ?")
_BEGINS = re.compile(r"\A\s*Human:")
_ANSWER_FOLLOWS = re.compile(r"\n\nAssistant:\Z")
_ROLES = {"Human": "user", "Assistant": "assistant"}
# ShareGPT's names for speakers.
_FROM = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "system": "system",
}
_TOOL_ROLES = ("tool", "function", "function_call", "observation", "ipython")
_TOOL_FIELDS = ("tool_calls", "function_call", "tool_call_id")
HALF_CHARACTER = "holds half of a character (a lone surrogate), which the database cannot store"
KEPT_FIELDS = frozenset(("role", "content", "from", "value"))


def storable(text: str) -> str:
    """Return the text unchanged.

    Raises:
        ValueError: PostgreSQL cannot store it.
    """
    if "\0" in text:
        raise ValueError("holds a NUL character, which the database cannot store")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(HALF_CHARACTER) from error
    return text


def is_message(value: object) -> bool:
    return isinstance(value, dict) and (value.keys() >= {"role", "content"} or value.keys() >= {"from", "value"})


def has_marks(text: str) -> bool:
    return bool(_BEGINS.match(text)) or "\n\nHuman:" in text or "\n\nAssistant:" in text


def is_transcript(text: str) -> bool:
    """Tell whether a text is a conversation with HH-RLHF's marks, and does not just quote them."""
    return bool(_BEGINS.match(text)) and "\n\nAssistant:" in text


def answer_follows(text: str) -> bool:
    """Tell whether a transcript ends with a bare mark; then the first space of the answer belongs to the mark."""
    return is_transcript(text) and bool(_ANSWER_FOLLOWS.search(text))


def prompt_turns(value: object) -> Turns:
    """Return the turns of a prompt. A plain text is one user turn; a transcript's empty last turn is removed.

    Raises:
        ValueError: as `turns_of`.
    """
    if not isinstance(value, str):
        return turns_of(value)
    if not is_transcript(value):
        return (("user", storable(value)),)
    turns = turns_of(value)
    return turns[:-1] if turns[-1][0] == "assistant" and not turns[-1][1].strip() else turns


def turns_of(value: object) -> Turns:
    """Return the turns of a transcript, of one message, or of a list of messages.

    Raises:
        ValueError: it is none of these, a transcript that does not begin with a mark, or a message that cannot be kept
            in full: a tool's message, or one with parts that are not text.
    """
    if isinstance(value, str):
        return _transcript(storable(value))
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, Sequence) or not all(isinstance(message, dict) for message in value):
        raise ValueError("must be a string or a list of messages with role and content")
    return tuple(_turn(message) for message in value)


def _turn(message: Mapping[str, object]) -> tuple[str, str]:
    role, content = message.get("role"), message.get("content")
    if role is None and isinstance(message.get("from"), str):
        said_by = str(message["from"])
        role, content = _FROM.get(said_by.lower(), said_by), message.get("value")
    if role in _TOOL_ROLES:
        raise ValueError(f"holds a message of the role {role}: conversations with tools cannot be imported yet")
    if used := next((name for name in _TOOL_FIELDS if message.get(name)), None):
        raise ValueError(f"holds a message with {used}: conversations with tools cannot be imported yet")
    if isinstance(content, list):
        content = "".join(_part(part) for part in content)
    if not isinstance(role, str) or not isinstance(content, str):
        raise ValueError("holds a message without a role or content, or one that is not a string")
    return role, storable(content)


def _part(part: object) -> str:
    """Return the text of a content part. Chat templates join the parts of a message with nothing in between."""
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = str(part.get("type"))[:50] if isinstance(part, dict) else type(part).__name__
    raise ValueError(f"holds a content part of the type {kind}: only parts of text can be imported")


def _transcript(text: str) -> Turns:
    before, *parts = _MARK.split(text)
    if before.strip() or not parts:
        raise ValueError('a transcript must begin with "Human:" (and turns part at "\\n\\nHuman:", "\\n\\nAssistant:")')
    return tuple((_ROLES[mark], said) for mark, said in zip(parts[::2], parts[1::2], strict=True))


def same(first: Turns, second: Turns) -> bool:
    """Tell whether both say the same, ignoring spaces around turns."""
    return [(role, text.strip()) for role, text in first] == [(role, text.strip()) for role, text in second]


def join_runs(turns: Turns) -> Turns:
    """Merge consecutive turns of one speaker, because chat templates need alternating speakers."""
    joined: list[tuple[str, str]] = []
    for role, text in turns:
        if joined and joined[-1][0] == role:
            joined[-1] = (role, "\n\n".join(part for part in (joined[-1][1], text) if part.strip()))
        else:
            joined.append((role, text))
    return tuple(joined)


def common_beginning(first: str, second: str) -> tuple[str, str, str]:
    """Split two texts into their common beginning, up to a space, and what is left of each.

    The beginning may be empty. TRL treats two texts without a prompt like this (`extract_prompt`), but may split a
    word.
    """
    shorter = min(len(first), len(second))
    # Compare slices in a binary search: comparing a long line character by character would block a thread.
    n = bisect_left(range(shorter), True, key=lambda k: first[: k + 1] != second[: k + 1])
    if n == shorter or not (first[n].isspace() and second[n].isspace()):
        same = first[:n]
        n -= 1 if same[-1:].isspace() else len((same.rsplit(maxsplit=1) or [""])[-1]) + 1
        n = max(n, 0)
    return first[:n], first[n:], second[n:]

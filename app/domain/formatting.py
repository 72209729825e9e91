"""Count Markdown in a response: formatting that people may prefer for its own sake."""

import re
from typing import NamedTuple

FENCED = re.compile(r"^ {0,3}(```|~~~).*?(^ {0,3}\1|\Z)", re.MULTILINE | re.DOTALL)
HEADER = re.compile(r"^ {0,3}#{1,6}[ \t]", re.MULTILINE)
LIST_ITEM = re.compile(r"^[ \t]*(?:[-*+]|\d{1,9}[.)])[ \t]", re.MULTILINE)
BOLD = re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__")


class Formatting(NamedTuple):
    """Markdown counts of a response."""

    headers: int
    lists: int  # items of lists
    bold: int


def formatting(text: str) -> Formatting:
    """Count Markdown outside code blocks, where `#` begins a comment."""
    if "```" in text or "~~~" in text:
        text = FENCED.sub("", text)
    # `in` is far faster than a pattern, and most texts have none.
    headers = len(HEADER.findall(text)) if "#" in text else 0
    bold = len(BOLD.findall(text)) if "**" in text or "__" in text else 0
    return Formatting(headers, len(LIST_ITEM.findall(text)), bold)


def relative(a: float, b: float) -> float:
    """Return (a - b) / (a + b), from -1 to 1; 0 if both are 0."""
    return (a - b) / (a + b) if a + b else 0.0

"""What changed between two texts: by line, and inside changed lines by word."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from typing import Literal, NamedTuple

# Unchanged lines shown around a change.
CONTEXT = 2
# Comparing takes up to (a) x (b) steps; past this a block counts as replaced, which is true if not helpful.
_MOST_STEPS = 10_000_000
# Blocks that share less than this are replaced rather than edited: marking their common commas would only confuse.
_LEAST_ALIKE = 0.35

# Scripts that put no space between words are compared character by character.
_UNSPACED = r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
_TOKEN = re.compile(rf"{_UNSPACED}|(?:(?!{_UNSPACED})\w)+|\n|[^\S\n]+|[^\w\s]")

Kind = Literal["same", "removed", "added", "gap"]


class Piece(NamedTuple):
    text: str
    marked: bool  # differs from the other side


class Line(NamedTuple):
    """One line of the comparison. A `gap` stands for `hidden` unchanged lines."""

    kind: Kind
    pieces: tuple[Piece, ...] = ()
    hidden: int = 0


def diff(old: str, new: str) -> list[Line]:
    """The lines of both texts in order, long unchanged stretches folded; empty when the texts are the same.

    Removed lines come before the added ones that replace them. Only line ends and trailing newlines do not count.
    """
    before, after = old.splitlines(), new.splitlines()
    if before == after:
        return []
    lines: list[Line] = []
    opcodes = _opcodes(before, after)
    for at, (tag, i1, i2, j1, j2) in enumerate(opcodes):
        if tag == "equal":
            lines += _folded(before[i1:i2], is_first=at == 0, is_last=at == len(opcodes) - 1)
        else:
            lines += _replaced(before[i1:i2], after[j1:j2])
    return lines


def _opcodes(before: Sequence[str], after: Sequence[str]) -> list[tuple[str, int, int, int, int]]:
    """difflib's, with the common beginning and end set aside first: most edits leave little between them."""
    most = min(len(before), len(after))
    start = next((n for n in range(most) if before[n] != after[n]), most)
    end = next((n for n in range(most - start) if before[-1 - n] != after[-1 - n]), most - start)
    a, b = before[start : len(before) - end], after[start : len(after) - end]
    found: list[tuple[str, int, int, int, int]] = [("equal", 0, start, 0, start)] if start else []
    if len(a) * len(b) > _MOST_STEPS:
        found.append(("replace", start, start + len(a), start, start + len(b)))
    else:
        for tag, i1, i2, j1, j2 in SequenceMatcher(None, a, b).get_opcodes():
            found.append((tag, i1 + start, i2 + start, j1 + start, j2 + start))
    if end:
        found.append(("equal", len(before) - end, len(before), len(after) - end, len(after)))
    return found


def _folded(lines: Sequence[str], *, is_first: bool, is_last: bool) -> list[Line]:
    """Unchanged lines; of many, those next to a change."""
    head, tail = 0 if is_first else CONTEXT, 0 if is_last else CONTEXT
    hidden = len(lines) - head - tail
    if hidden < 2:  # a note that one line is hidden is no shorter than the line
        return list(_plain("same", lines))
    return [
        *_plain("same", lines[:head]),
        Line("gap", hidden=hidden),
        *_plain("same", lines[len(lines) - tail :]),
    ]


def _replaced(before: Sequence[str], after: Sequence[str]) -> list[Line]:
    """Removed lines, then added ones; where they are alike, with the words marked that differ."""
    a, b = _TOKEN.findall("\n".join(before)), _TOKEN.findall("\n".join(after))
    opcodes = _opcodes(a, b) if a and b else []
    common = sum(len(token) for tag, i1, i2, *_ in opcodes if tag == "equal" for token in a[i1:i2])
    total = max(sum(map(len, a)), sum(map(len, b)))
    if not opcodes or common < _LEAST_ALIKE * total:
        return [*_plain("removed", before), *_plain("added", after)]
    sides: tuple[list[Piece], list[Piece]] = ([], [])
    for tag, i1, i2, j1, j2 in opcodes:
        for side, text in zip(sides, ("".join(a[i1:i2]), "".join(b[j1:j2])), strict=True):
            side.append(Piece(text, tag != "equal"))
    return [*_split("removed", sides[0]), *_split("added", sides[1])]


def _split(kind: Kind, pieces: Iterable[Piece]) -> list[Line]:
    """The pieces as lines."""
    lines: list[list[Piece]] = [[]]
    for piece in pieces:
        first, *rest = piece.text.split("\n")
        lines[-1].append(Piece(first, piece.marked))
        lines += [[Piece(text, piece.marked)] for text in rest]
    return [Line(kind, tuple(_shown(piece) for piece in line if piece.text)) for line in lines]


def _plain(kind: Kind, lines: Iterable[str]) -> Iterable[Line]:
    return (Line(kind, (_shown(Piece(text, False)),) if text else ()) for text in lines)


def _shown(piece: Piece) -> Piece:
    """With characters that cannot be seen, or that turn the direction of what follows, spelled out: a change of these
    alone must show too. The joiners that many scripts and emoji are written with stay."""
    if piece.text.isascii():
        return piece
    return Piece("".join(f"[U+{ord(c):04X}]" if _is_hidden(c) else c for c in piece.text), piece.marked)


def _is_hidden(character: str) -> bool:
    return unicodedata.category(character) == "Cf" and character not in "\u200c\u200d"

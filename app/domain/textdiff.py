"""Differences between two texts: by line, and inside changed lines by word."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Literal, NamedTuple

# Unchanged lines shown around a change.
CONTEXT = 2
# The comparison keeps a bit for each pair of words (or lines). A block with more pairs than this counts as replaced as
# a whole, which is correct but less helpful.
_MOST_PAIRS = 30_000_000
# Blocks that share less than this count as replaced: marking a few common commas would only confuse.
_LEAST_ALIKE = 0.35

# Scripts without spaces between words are compared character by character.
_UNSPACED = r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
_TOKEN = re.compile(rf"{_UNSPACED}|(?:(?!{_UNSPACED})\w)+|\n|[^\S\n]+|[^\w\s]")

Kind = Literal["same", "removed", "added", "gap"]


class Piece(NamedTuple):
    text: str
    marked: bool  # differs from the other side


class Opcode(NamedTuple):
    """A range of a, from i1 to i2, and the range of b in its place."""

    tag: Literal["equal", "replace"]
    i1: int
    i2: int
    j1: int
    j2: int


class Line(NamedTuple):
    """One line of the comparison. A `gap` stands for `hidden` unchanged lines."""

    kind: Kind
    pieces: tuple[Piece, ...] = ()
    hidden: int = 0


def diff(old: str, new: str) -> list[Line]:
    """Return the lines of both texts in order, with long unchanged ranges folded; empty if the texts are equal.

    Removed lines come before the lines that replace them. Line endings (LF, CR) and a line end at the end of a text are
    ignored.
    """
    before, after = _lines(old), _lines(new)
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


def _lines(text: str) -> list[str]:
    # Not str.splitlines: it also splits at other characters, and a change of these characters would not show.
    text = text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")
    return text.split("\n") if text else []


def kept(old: str, new: str) -> float:
    """Return the share of the longer text, in characters, that both texts have in the same order."""
    a, b = _TOKEN.findall(old), _TOKEN.findall(new)
    return _common(a, _opcodes(a, b)) / max(len(old), len(new), 1)


def _common(a: Sequence[str], opcodes: Iterable[Opcode]) -> int:
    return sum(len(token) for tag, i1, i2, *_ in opcodes if tag == "equal" for token in a[i1:i2])


def _opcodes(a: Sequence[str], b: Sequence[str]) -> list[Opcode]:
    """Return how a becomes b: ranges of both, in order, that are alternately equal and replaced.

    The common start and end are split off first, because most edits leave little between them.
    """
    most = min(len(a), len(b))
    start = next((n for n in range(most) if a[n] != b[n]), most)
    end = next((n for n in range(most - start) if a[-1 - n] != b[-1 - n]), most - start)
    middle = _longest_common(a[start : len(a) - end], b[start : len(b) - end])
    pairs = [(0, 0, start), *((start + i, start + j, n) for i, j, n in middle), (len(a) - end, len(b) - end, end)]
    found: list[Opcode] = []
    i = j = 0
    for at_a, at_b, length in pairs:
        if i < at_a or j < at_b:
            found.append(Opcode("replace", i, at_a, j, at_b))
        if length:
            found.append(Opcode("equal", at_a, at_a + length, at_b, at_b + length))
        i, j = at_a + length, at_b + length
    return found


def _longest_common(a: Sequence[str], b: Sequence[str]) -> Iterator[tuple[int, int, int]]:
    """Yield (index in a, index in b, length) for the contiguous ranges of a longest common subsequence.

    The algorithm is bit-parallel (Hyyrö 2004): after i tokens of a, bit j of the row is 0 if token j of b makes the
    longest common subsequence of both prefixes longer. Backtracking through the rows from the ends gives the matches.
    """
    if len(a) * len(b) > _MOST_PAIRS:
        return
    places: dict[str, int] = defaultdict(int)
    for j, token in enumerate(b):
        places[token] |= 1 << j
    row = all_ones = (1 << len(b)) - 1
    rows = [row]
    for token in a:
        matching = row & places.get(token, 0)
        row = ((row + matching) | (row - matching)) & all_ones
        rows.append(row)
    matches: list[tuple[int, int]] = []
    i, j = len(a), len(b)
    while i and j:
        if a[i - 1] == b[j - 1]:
            i, j = i - 1, j - 1
            matches.append((i, j))
        elif rows[i] >> (j - 1) & 1:
            j -= 1
        else:
            i -= 1
    for _, stretch in groupby(
        enumerate(reversed(matches)), key=lambda each: (each[1][0] - each[0], each[1][1] - each[0])
    ):
        first, *rest = (pair for _, pair in stretch)
        # Skip ranges of spaces: if all words around them changed, marking each word separately would only confuse.
        if not all(a[i].isspace() and a[i] != "\n" for i, _ in (first, *rest)):
            yield (*first, 1 + len(rest))


def _folded(lines: Sequence[str], *, is_first: bool, is_last: bool) -> list[Line]:
    """Return unchanged lines; if they are many, only those next to a change."""
    head, tail = 0 if is_first else CONTEXT, 0 if is_last else CONTEXT
    hidden = len(lines) - head - tail
    if hidden < 2:  # a note about one hidden line is as long as the line
        return list(_plain("same", lines))
    return [
        *_plain("same", lines[:head]),
        Line("gap", hidden=hidden),
        *_plain("same", lines[len(lines) - tail :]),
    ]


def _replaced(before: Sequence[str], after: Sequence[str]) -> list[Line]:
    """Return removed lines, then added lines; if the two are similar, the words that differ are marked."""
    a, b = _TOKEN.findall("\n".join(before)), _TOKEN.findall("\n".join(after))
    opcodes = _opcodes(a, b) if a and b else []
    total = max(sum(map(len, a)), sum(map(len, b)))
    if not opcodes or _common(a, opcodes) < _LEAST_ALIKE * total:
        return [*_plain("removed", before), *_plain("added", after)]
    sides: tuple[list[Piece], list[Piece]] = ([], [])
    for tag, i1, i2, j1, j2 in opcodes:
        for side, text in zip(sides, ("".join(a[i1:i2]), "".join(b[j1:j2])), strict=True):
            side.append(Piece(text, tag != "equal"))
    return [*_split("removed", sides[0]), *_split("added", sides[1])]


def _split(kind: Kind, pieces: Iterable[Piece]) -> list[Line]:
    """Split pieces into lines."""
    lines: list[list[Piece]] = [[]]
    for piece in pieces:
        first, *rest = piece.text.split("\n")
        lines[-1].append(Piece(first, piece.marked))
        lines += [[Piece(text, piece.marked)] for text in rest]
    return [Line(kind, tuple(_shown(piece) for piece in line if piece.text)) for line in lines]


def _plain(kind: Kind, lines: Iterable[str]) -> Iterable[Line]:
    return (Line(kind, (_shown(Piece(text, False)),) if text else ()) for text in lines)


def _shown(piece: Piece) -> Piece:
    return Piece(spell_hidden(piece.text), piece.marked)


def spell_hidden(text: str) -> str:
    """Spell out invisible characters and direction marks, so that a change of these characters shows.

    Zero-width joiners and non-joiners stay, because many scripts and emoji use them.
    """
    if text.isascii():
        return text
    return "".join(f"[U+{ord(c):04X}]" if _is_hidden(c) else c for c in text)


def _is_hidden(character: str) -> bool:
    return unicodedata.category(character) == "Cf" and character not in "\u200c\u200d"

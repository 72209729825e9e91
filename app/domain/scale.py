"""The preference scale, and the way between the side shown and the canonical order.

A preference in canonical order runs from -strengths (A is better, as strongly as can be said) to strengths (B is); 0 is
a tie. The same numbers on the screen run from the first (left) response to the second (right) one.
"""

from typing import NamedTuple

# What each strength is called, weakest first, on a scale of so many strengths.
_WORDS = {
    1: ("better",),
    2: ("better", "much better"),
    3: ("slightly better", "better", "much better"),
    4: ("slightly better", "better", "much better", "far better"),
}


def values(strengths: int, *, allow_tie: bool) -> tuple[int, ...]:
    """Every preference that can be given, from the first response's side to the second's."""
    return tuple(value for value in range(-strengths, strengths + 1) if value or allow_tie)


def words(value: int, strengths: int) -> str:
    """What a preference says about the response it points to: "much better", or "tie"."""
    return _WORDS[strengths][abs(value) - 1] if value else "tie"


class Step(NamedTuple):
    """One step of the scale on the screen.

    value: what the form sends. key: on the keyboard, from 1. side: first, tie or second. words: what is written on it.
    label: the same said in full, for screen readers and where only `mark` has room.
    """

    value: int
    key: str
    side: str
    words: str
    label: str
    mark: str


def steps(strengths: int, *, allow_tie: bool) -> list[Step]:
    """The scale as it is shown, from the first response's side to the second's."""
    found = []
    for key, value in enumerate(values(strengths, allow_tie=allow_tie), start=1):
        said = words(value, strengths)
        side = "tie" if value == 0 else "first" if value < 0 else "second"
        label = "Tie" if value == 0 else f"{side.capitalize()} response {said}"
        mark = "=" if value == 0 else str(abs(value))
        found.append(Step(value, str(key), side, said.capitalize(), label, mark))
    return found


def canonical(shown: int, *, swapped: bool) -> int:
    """The preference towards B, from one given towards the second response shown. Its own inverse.

    Args:
        swapped: B was shown first.
    """
    return -shown if swapped else shown

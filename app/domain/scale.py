"""The preference scale, and the conversion between the order on the screen and the canonical order.

In canonical order, a preference runs from -strengths (A is better, most strongly) to strengths (B is better, most
strongly); 0 is a tie. On the screen, the same numbers run from the first (left) response to the second (right) one.
"""

from typing import NamedTuple

# Names of the strengths, weakest first, by the scale's number of strengths.
_WORDS = {
    1: ("better",),
    2: ("better", "much better"),
    3: ("slightly better", "better", "much better"),
    4: ("slightly better", "better", "much better", "far better"),
}


def values(strengths: int, *, allow_tie: bool) -> tuple[int, ...]:
    """Return all possible preferences, from the first response's side to the second's."""
    return tuple(value for value in range(-strengths, strengths + 1) if value or allow_tie)


def words(value: int, strengths: int) -> str:
    """Describe a preference for the response it favors: "much better", or "tie"."""
    return _WORDS[strengths][abs(value) - 1] if value else "tie"


class Step(NamedTuple):
    """One step of the scale on the screen.

    Attributes:
        value: the value that the form sends.
        key: its key on the keyboard, from 1.
        side: first, tie or second.
        words: the text on the step.
        label: the full text, for screen readers and for when only `mark` has room.
        mark: a short sign.
    """

    value: int
    key: str
    side: str
    words: str
    label: str
    mark: str


def steps(strengths: int, *, allow_tie: bool) -> list[Step]:
    """Return the steps of the scale as shown, from the first response's side to the second's."""
    found = []
    for key, value in enumerate(values(strengths, allow_tie=allow_tie), start=1):
        said = words(value, strengths)
        side = "tie" if value == 0 else "first" if value < 0 else "second"
        label = "Tie" if value == 0 else f"{side.capitalize()} response {said}"
        mark = "=" if value == 0 else str(abs(value))
        found.append(Step(value, str(key), side, said.capitalize(), label, mark))
    return found


def canonical(shown: int, *, swapped: bool) -> int:
    """Convert a preference towards the second response shown into one towards B. The function is its own inverse.

    Args:
        swapped: B was shown first.
    """
    return -shown if swapped else shown

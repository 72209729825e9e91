"""What the review templates show."""

from typing import NamedTuple

STRENGTHS = {1: "slightly better", 2: "better", 3: "much better"}


def describe(preference: int) -> str:
    """`2` -> "B is better"."""
    if preference == 0:
        return "Tie"
    return f"{'B' if preference > 0 else 'A'} is {STRENGTHS[abs(preference)]}"


class Step(NamedTuple):
    """One button of the verdict: its value, words, and the key that chooses it."""

    value: int
    label: str
    mark: str
    key: int


def steps(strengths: int) -> list[Step]:
    """From A much better to B much better, with keys from 1."""
    values = range(-strengths, strengths + 1)
    marks = {value: "=" if value == 0 else ("B" if value > 0 else "A") + "+" * (abs(value) - 1) for value in values}
    return [Step(value, describe(value), marks[value], key) for key, value in enumerate(values, 1)]


class Tally(NamedTuple):
    """How many said A, tie and B."""

    a: int
    tie: int
    b: int


def tally(preferences: list[int]) -> Tally:
    return Tally(sum(p < 0 for p in preferences), sum(p == 0 for p in preferences), sum(p > 0 for p in preferences))

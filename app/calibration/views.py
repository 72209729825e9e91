"""Data for the calibration page, in words."""

from typing import NamedTuple

from app.calibration.queries import Change, Item
from app.domain import scale
from app.domain.proportions import wilson


class Row(NamedTuple):
    """An item; interval: the 95% Wilson interval of the share of people who are right."""

    item: Item
    answer: str
    choices: list[tuple[int, str]]
    interval: tuple[float, float] | None

    @property
    def is_used(self) -> bool:
        return self.item.state == "open"


def row(item: Item) -> Row:
    choices = [(value, in_words(value, item.strengths)) for value in scale.values(item.strengths, allow_tie=True)]
    kept = [(value, words) for value, words in choices if value or item.allow_tie]
    return Row(item, in_words(item.gold, item.strengths), kept, wilson(item.right, item.answers))


def in_words(gold: int, strengths: int) -> str:
    """Put a known answer in words: `2` -> "B is better". Values beyond a shortened scale use its strongest word."""
    return f"{'B' if gold > 0 else 'A'} is {scale.words(min(abs(gold), strengths), strengths)}" if gold else "Tie"


def change(made: Change) -> str:
    """Say what was done; it follows the name of the person."""
    what = {
        "calibration.added": "added",
        "calibration.retired": "retired",
        "calibration.brought_back": "brought back",
        "calibration.corrected": "changed the known answer of",
    }[made.action]
    between = f", from {_short(made.before)} to {_short(made.gold)}" if made.before is not None else ""
    return f"{what} item {made.item_id}{between}"


def _short(gold: int | None) -> str:
    return f"{'B' if gold > 0 else 'A'} by {abs(gold)}" if gold else "a tie"

"""What the pages of red teaming show."""

from collections.abc import Iterable
from itertools import groupby
from typing import NamedTuple

from app.domain.proportions import wilson
from app.red_team.forms import CATEGORIES, SUCCESS, TAGS
from app.red_team.queries import Outcome


class Rate(NamedTuple):
    """How often attempts succeed: severity 2 or 3, with the 95% Wilson interval."""

    model_id: int
    model: str
    category: str  # '' for all
    by_severity: tuple[int, ...]
    n: int
    share: float
    low: float
    high: float


def _rate(model_id: int, model: str, category: str, by_severity: tuple[int, ...]) -> Rate:
    n, successes = sum(by_severity), sum(by_severity[SUCCESS:])
    interval = wilson(successes, n)
    assert interval is not None, "only rated attempts are counted"
    return Rate(model_id, model, category, by_severity, n, successes / n, *interval)


def rates(outcomes: Iterable[Outcome]) -> list[Rate]:
    """For each model version, which come together: first over all categories, then each of them."""
    found = []
    for (model_id, model), group in groupby(outcomes, key=lambda each: (each.model_id, each.model)):
        rows = list(group)
        total = tuple(sum(counts) for counts in zip(*(row.by_severity for row in rows), strict=True))
        found.append(_rate(model_id, model, "", total))
        found += [_rate(model_id, model, row.safety_category, row.by_severity) for row in rows]
    return found


def categories(own: Iterable[str]) -> list[str]:
    """The usual ones, then the project's own."""
    return list(dict.fromkeys((*CATEGORIES, *own)))


class TagBox(NamedTuple):
    name: str
    checked: bool
    key: str


def tag_boxes(chosen: Iterable[str]) -> tuple[list[TagBox], str]:
    """The tags with the keys that set them, and the one chosen that is not among them ('' for none)."""
    chosen = list(chosen)
    own = [tag for tag in chosen if tag not in TAGS]
    boxes = [TagBox(tag, tag in chosen, "abcdefghij"[at]) for at, tag in enumerate(TAGS)]
    return boxes + [TagBox(tag, True, "") for tag in own[1:]], own[0] if own else ""

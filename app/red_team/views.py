"""Data for the pages of red teaming."""

from collections.abc import Iterable
from itertools import groupby
from typing import NamedTuple

from app.domain.proportions import wilson
from app.red_team.forms import CATEGORIES, SUCCESS, TAGS
from app.red_team.queries import Outcome


class Rate(NamedTuple):
    """How often attempts succeed (severity 2 or 3), with the 95% Wilson interval."""

    model_id: int
    model: str
    category: str  # '' for all categories
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
    """Return rates for each model version: first over all categories, then by category.

    `outcomes` must be grouped by model.
    """
    found = []
    for (model_id, model), group in groupby(outcomes, key=lambda each: (each.model_id, each.model)):
        rows = list(group)
        total = tuple(sum(counts) for counts in zip(*(row.by_severity for row in rows), strict=True))
        found.append(_rate(model_id, model, "", total))
        found += [_rate(model_id, model, row.safety_category, row.by_severity) for row in rows]
    return found


def categories(own: Iterable[str]) -> list[str]:
    """Return the usual categories, then the project's own."""
    return list(dict.fromkeys((*CATEGORIES, *own)))


class TagBox(NamedTuple):
    name: str
    checked: bool
    key: str


def tag_boxes(chosen: Iterable[str]) -> tuple[list[TagBox], str]:
    """Return the tags with their keyboard keys, and the first chosen tag that is not in the list ('' if none)."""
    chosen = list(chosen)
    own = [tag for tag in chosen if tag not in TAGS]
    boxes = [TagBox(tag, tag in chosen, "abcdefghij"[at]) for at, tag in enumerate(TAGS)]
    return boxes + [TagBox(tag, True, "") for tag in own[1:]], own[0] if own else ""

"""Checking an answer against its rubric. A refusal names the part that is not allowed."""

from typing import NamedTuple

from app.domain import scale
from app.errors import InvalidInput
from app.labeling.forms import BOTH_BAD, CANNOT_JUDGE, LabelForm
from app.models import Rubric


class Said(NamedTuple):
    """An answer that the rubric allows, with sides as shown.

    preference: None for a ranking or if the labeler cannot judge. ranks: only for a ranking, in the order shown.
    """

    preference: int | None
    both_bad: bool
    ranks: list[int | None] | None
    aspects: dict[str, int]
    flags: list[str]
    rationale: str


def check(form: LabelForm, rubric: Rubric, *, ranked: int = 0) -> Said:
    """Return the answer if the rubric allows it.

    Args:
        ranked: how many responses were to be ranked; 0 for a pair.

    Raises:
        InvalidInput: says which field the rubric does not allow, and what it allows.
    """
    aspects = _aspects(form, rubric, ranked)
    flags = _flags(form, rubric)
    if rubric.rationale_rule == "required" and not form.rationale:
        raise InvalidInput("This rubric requires a reason for every judgment.", "Say in a sentence why.")
    rest = (aspects, flags, form.rationale)
    if form.preference == CANNOT_JUDGE:
        if not rubric.allow_cannot_judge:
            raise InvalidInput("This rubric has no “cannot judge”.", "Choose one of the steps shown, or skip.")
        if any(rank is not None for rank in form.ranks):
            raise InvalidInput("You gave ranks and also chose “cannot judge”.", "Clear one of the two.")
        return Said(None, False, [None] * ranked if ranked else None, *rest)
    if ranked:
        return Said(None, False, _ranks(form, rubric, ranked), *rest)
    if form.ranks:
        raise InvalidInput("There is nothing to rank on this card.", "Choose one of the steps shown.")
    if form.preference == BOTH_BAD:
        if not rubric.allow_both_bad:
            raise InvalidInput("This rubric has no “both bad”.", "Choose one of the steps shown.")
        return Said(0, True, None, *rest)
    return Said(_preference(form, rubric), False, None, *rest)


def _preference(form: LabelForm, rubric: Rubric) -> int:
    if not isinstance(form.preference, int):
        raise InvalidInput("No preference was chosen.", "Choose one of the steps between the two responses.")
    steps = scale.values(rubric.strengths, allow_tie=rubric.allow_tie)
    if form.preference not in steps:
        if form.preference == 0:
            raise InvalidInput("This rubric has no tie.", "Choose the response that is better, even if only slightly.")
        allowed = ", ".join(map(str, steps))
        raise InvalidInput(
            f"The preference {form.preference} is not on the rubric's scale.", f"Choose one of the steps: {allowed}."
        )
    return form.preference


def _ranks(form: LabelForm, rubric: Rubric, ranked: int) -> list[int | None]:
    if form.preference is not None:
        raise InvalidInput(
            "A ranking does not take a preference between two responses.", "Give each response its rank."
        )
    if len(form.ranks) != ranked:
        raise InvalidInput(
            f"{len(form.ranks)} ranks were given for {ranked} responses.",
            "Give each response a rank, or leave it unranked.",
        )
    given = [rank for rank in form.ranks if rank is not None]
    if not given:
        raise InvalidInput("No response was ranked.", "Rank at least the best response.")
    if max(given) > ranked:
        raise InvalidInput(f"There is no rank {max(given)} among {ranked} responses.", f"Use ranks 1 to {ranked}.")
    if len(set(given)) < len(given) and not rubric.allow_tie:
        raise InvalidInput("This rubric has no tie.", "Give every response a rank of its own.")
    return list(form.ranks)


def _aspects(form: LabelForm, rubric: Rubric, ranked: int) -> dict[str, int]:
    known = [] if ranked else [str(aspect["name"]) for aspect in rubric.aspects]
    for name, value in form.aspects.items():
        if name not in known:
            raise InvalidInput(f"This rubric has no aspect “{name}”.", _those_are("aspects", known))
        if value not in (-1, 0, 1):
            raise InvalidInput(
                f"“{name}” was rated {value}.", "Rate an aspect -1 (first), 0 (same) or 1 (second), or leave it out."
            )
    return form.aspects


def _flags(form: LabelForm, rubric: Rubric) -> list[str]:
    known = [str(flag["name"]) for flag in rubric.flags]
    for name in form.flags:
        if name not in known:
            raise InvalidInput(f"This rubric has no flag “{name}”.", _those_are("flags", known))
    return [name for name in known if name in form.flags]


def _those_are(kind: str, names: list[str]) -> str:
    return f"Its {kind} are: {', '.join(names)}." if names else f"It has no {kind}."

"""Data for the review templates, in words."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup

from app.domain import scale
from app.domain.consensus import who_won
from app.models import Comparison, Judgment
from app.review.queries import Decision, Said
from app.review.queues import Answer, Queued


def describe(preference: int | None, strengths: int, *, both_bad: bool = False) -> str:
    """Describe a preference: `2` -> "B is better"."""
    if preference is None:
        return "Could not judge"
    if preference == 0:
        return "Both bad" if both_bad else "Tie"
    return f"{side(preference)} is {scale.words(preference, strengths)}"


def side(preference: float) -> str:
    return "B" if preference > 0 else "A"


class Step(NamedTuple):
    """One button of the verdict: its value, its words, and its keyboard key."""

    value: int
    label: str
    words: str
    mark: str
    key: int


def steps(strengths: int) -> list[Step]:
    """Return the steps from A to B, with keys from 1. A reviewer may always choose a tie."""
    found = []
    for key, value in enumerate(scale.values(strengths, allow_tie=True), 1):
        mark = "=" if value == 0 else side(value) + "+" * (abs(value) - 1)
        found.append(Step(value, describe(value, strengths), scale.words(value, strengths), mark, key))
    return found


def tally(answers: Sequence[tuple[int | None, bool]]) -> str:
    """Sum up answers (preference, both bad), for example "3 for A, 2 for B, 1 tie, 1 could not judge"."""
    preferences = [preference for preference, _ in answers if preference is not None]
    both_bad = sum(bad for _, bad in answers)
    parts = (
        (sum(p < 0 for p in preferences), "for A"),
        (sum(p > 0 for p in preferences), "for B"),
        (preferences.count(0) - both_bad, "tie"),
        (both_bad, "both bad"),
        (len(answers) - len(preferences), "could not judge"),
    )
    return ", ".join(f"{n} {words}" for n, words in parts if n) or "no judgments"


def tally_of(judgments: Iterable[Said]) -> str:
    return tally([(said.judgment.preference, said.judgment.both_bad) for said in judgments])


def odds(p_b: float) -> str:
    """Describe the reward model's prediction: `0.06` -> "94% for A"."""
    # Never "100%": a model is not certain, and rounding must not suggest it.
    percent = min(99, int(100 * max(p_b, 1 - p_b) + 0.5))
    return f"{percent}% for {'B' if p_b > 0.5 else 'A'}" if p_b != 0.5 else "50% for either"


def is_tie(comparison: Comparison) -> bool:
    return who_won(comparison.consensus, comparison.p_b, comparison.p_tie) == 0


def is_conflict(comparison: Comparison) -> bool:
    """Tell whether the reward model is sure that people chose the wrong side: as app.models.comparison.IN_CONFLICT."""
    p, people = comparison.reward_p_b, who_won(comparison.consensus, comparison.p_b, comparison.p_tie)
    return p is not None and ((people == 1 and p <= 0.2) or (people == -1 and p >= 0.8))


class Row(NamedTuple):
    """A comparison in a queue. why: the reason in words. hidden: the viewer may still judge it, so its judgments stay
    hidden."""

    queued: Queued
    why: str | Markup
    hidden: bool


def row(queue: str, queued: Queued, *, hidden: bool) -> Row:
    said = tally([(answer.preference, answer.both_bad) for answer in queued.answers])
    comparison = queued.comparison
    if queue == "flagged":
        return Row(queued, flags_in_words(queued.answers), hidden)
    if queue == "conflict":
        assert comparison.reward_p_b is not None
        return Row(queued, f"{said}; reward model {odds(comparison.reward_p_b)}", hidden)
    if queue == "requested":
        asked = "{} requested a review" if queued.requested_by else "A review was requested"
        why = f"{asked}: “{{}}”" if queued.request else f"{asked} ({said})"
        given = [_apart(text) for text in (queued.requested_by, queued.request) if text]
        return Row(queued, Markup(why).format(*given), hidden)
    reason = "labelers could not judge it: " if comparison.review_reason == "unjudgeable" else ""
    return Row(queued, reason + said, hidden)


def flags_in_words(answers: Iterable[Answer]) -> Markup:
    """Return the flags with who set them: `harmful: Ada, Bo (imported)`."""
    by_flag: dict[str, list[Markup]] = {}
    for answer in answers:
        for flag in answer.flags:
            by_flag.setdefault(flag, []).append(_who(answer.labeler, answer.kind))
    parts = (Markup("{}: {}").format(_apart(flag), Markup(", ").join(names)) for flag, names in sorted(by_flag.items()))
    return Markup("; ").join(parts) or Markup("flag since removed")


def _who(name: str, kind: str) -> Markup:
    """Mark judgments by machines and imported ones, so that nobody takes them for a person's."""
    return _apart(name) if kind == "person" else Markup("{} ({})").format(_apart(name), kind.replace("_", " "))


def _apart(text: str) -> Markup:
    """Isolate a user's text within our line, because its writing direction may differ."""
    return Markup("<bdi>{}</bdi>").format(text)


def decision(made: Decision, strengths: int) -> str:
    """Say what was done, such as `asked 2 more labelers (Experts)`; it follows the reviewer's name."""
    details = made.details
    match made.action:
        case "review.adjudicated":
            # A verdict that was taken back may be on the wider scale of an earlier rubric.
            return f"gave the verdict: {describe(details['verdict'], max(strengths, abs(details['verdict'])))}"
        case "review.more_asked":
            whom = f" ({details['asked']})" if details.get("asked") else ""
            return f"asked {details['more']} more labeler{'' if details['more'] == 1 else 's'}{whom}"
        case "review.withdrawn":
            return "withdrew it"
        case "review.flags_dismissed":
            return "dismissed its flags"
        case "review.people_right":
            return "found the labelers right, not the reward model"
        case "review.requested":
            return "sent it to review"
        case "calibration.added":
            return "made it a calibration item"
    return made.action.removeprefix("review.").replace("_", " ")


def aspects(judgment: Judgment) -> list[str]:
    """Describe a judgment's aspects: `factuality: B`, `style: same`."""
    words = {-1: "A", 0: "same", 1: "B"}
    return [f"{name}: {words[value]}" for name, value in sorted(judgment.aspects.items())]

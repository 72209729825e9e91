"""The verdict on whether a round improved its policy: by people if enough have judged, else by the reward model."""

from typing import Literal, NamedTuple

from app.domain.intervals import Interval
from app.domain.sequence import Preference, Word

LEAST_PROMPTS = 10  # minimum judged prompts: fewer cannot decide, whatever the judgments are (app.domain.sequence)


class Verdict(NamedTuple):
    """The verdict on a round's new policy against the previous one.

    Attributes:
        interval: its basis with a 95% interval: people's win rate of the new policy (a confidence sequence), or the
            difference of the reward model's mean scores, new minus previous.
    """

    word: Word
    by: Literal["people", "reward model"]
    interval: Interval


def verdict(people: Preference | None, difference: Interval | None) -> Verdict | None:
    """Return the verdict on a round; None without any measurement.

    Args:
        people: result of people's judgments on the new policy against the previous one.
        difference: mean score of the new policy minus that of the previous one, by the round's reward model.
    """
    if people is not None and people.prompts >= LEAST_PROMPTS:
        return Verdict(people.word, "people", Interval(people.value, people.low, people.high))
    return by_reward_model(difference)


def by_reward_model(difference: Interval | None) -> Verdict | None:
    """Return the verdict of the round's reward model, which is available when a round ends; people judge later."""
    if difference is None:
        return None
    word: Word = "better" if difference.low > 0 else "worse" if difference.high < 0 else "not shown"
    return Verdict(word, "reward model", difference)

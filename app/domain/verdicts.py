"""Whether a round made its policy better: people's word where there is enough of it, otherwise the reward model's."""

from typing import Literal, NamedTuple

from app.domain.intervals import Interval
from app.domain.sequence import Preference, Word

LEAST_PROMPTS = 10  # judged ones: fewer cannot decide, whatever is said of them (app.domain.sequence)


class Verdict(NamedTuple):
    """What is known of a round's new policy beside the one before it.

    Attributes:
        interval: what it rests on, with 95%: people's win rate of the new policy, by a confidence sequence, or the
            reward model's mean score of it less that of the previous one.
    """

    word: Word
    by: Literal["people", "reward model"]
    interval: Interval


def verdict(people: Preference | None, difference: Interval | None) -> Verdict | None:
    """The verdict on a round; none where nobody has measured it.

    Args:
        people: what they said of the new policy beside the previous one.
        difference: mean score of the new policy less that of the previous one, by the round's reward model.
    """
    if people is not None and people.prompts >= LEAST_PROMPTS:
        return Verdict(people.word, "people", Interval(people.value, people.low, people.high))
    return by_reward_model(difference)


def by_reward_model(difference: Interval | None) -> Verdict | None:
    """The verdict of the round's reward model alone, which is there when a round ends: people judge later."""
    if difference is None:
        return None
    word: Word = "better" if difference.low > 0 else "worse" if difference.high < 0 else "not shown"
    return Verdict(word, "reward model", difference)

"""Whether a round made its policy better: people's word where there is enough of it, otherwise the reward model's."""

from typing import Literal, NamedTuple

from app.domain.intervals import Interval

Word = Literal["better", "not shown", "worse"]

LEAST_COMPARISONS = 20  # decided ones of new against previous policy; from fewer, people have not said enough


class Verdict(NamedTuple):
    """What is known of a round's new policy beside the one before it.

    Attributes:
        interval: what it rests on, with 95%: people's win rate of the new policy, or the reward model's mean score of
            it less that of the previous one.
    """

    word: Word
    by: Literal["people", "reward model"]
    interval: Interval


def verdict(win_rate: Interval | None, comparisons: int, difference: Interval | None) -> Verdict | None:
    """The verdict on a round; none where nobody has measured it.

    Args:
        win_rate: how often people preferred the new policy's response to the previous one's, in [0, 1].
        comparisons: decided ones behind it.
        difference: mean score of the new policy less that of the previous one, by the round's reward model.
    """
    if win_rate is not None and comparisons >= LEAST_COMPARISONS:
        return Verdict(_word(win_rate, 0.5), "people", win_rate)
    return by_reward_model(difference)


def by_reward_model(difference: Interval | None) -> Verdict | None:
    """The verdict of the round's reward model alone, which decides when a round ends: people judge later."""
    return None if difference is None else Verdict(_word(difference, 0.0), "reward model", difference)


def _word(interval: Interval, even: float) -> Word:
    return "better" if interval.low > even else "worse" if interval.high < even else "not shown"

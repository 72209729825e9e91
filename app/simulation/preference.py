"""Hidden preferences: what simulated labelers truly like, and how faithfully each of them says so.

A preference scores a response from its text alone, so it can be computed for any two responses, judged or not: that is
what the win rate is measured with.
"""

import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Score = Callable[[str, str], float]

# Words that say nothing about the topic of a question.
_COMMON = frozenset(
    """a an and answer are as at be by can do does explain for from give how i in is it list me my name of on one or
    please sentence short should tell that the this to was what when where which who why will with word words write
    you your""".split()
)


def words(text: str) -> list[str]:
    return re.findall(r"[\w'’]+", text.lower())


def repetition(text: str) -> float:
    """Share of the text's word trigrams that occurred before in it, 0 to 1."""
    tokens = words(text)
    trigrams = list(zip(tokens, tokens[1:], tokens[2:], strict=False))
    return 1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0


def on_topic(question: str, response: str) -> float:
    """Share of the question's own words that the response takes up, 0 to 1."""
    asked = set(words(question)) - _COMMON
    return len(asked & set(words(response))) / len(asked) if asked else 0.0


def concise(question: str, response: str) -> float:
    """Likes answers that are short, finished, about the question, and do not repeat themselves."""
    length = len(words(response))
    if length == 0:
        return -6.0
    finished = response.rstrip().endswith((".", "!", "?", "”", '"', ")", "`"))
    return 2.0 * on_topic(question, response) + 1.0 * finished - 3.0 * repetition(response) - 0.06 * length


def detailed(question: str, response: str) -> float:
    """Likes long answers about the question without repetition: the opposite pull, to check the loop with."""
    return 2.0 * on_topic(question, response) - 3.0 * repetition(response) + 0.06 * len(words(response))


PREFERENCES: dict[str, Score] = {"concise": concise, "detailed": detailed}


@dataclass(frozen=True)
class SimulatedLabeler:
    """A labeler with a hidden preference who errs at random and leans to the left by habit.

    noise: share of judgments made at random, whatever the responses are.
    position_bias: share of judgments in which the left response is chosen unread.
    """

    score: Score
    noise: float
    position_bias: float
    rng: random.Random

    def judge(self, question: str, left: str, right: str, strengths: int = 3) -> int:
        """The shown-side preference: -strengths (left much better) to strengths (right much better), 0 a tie."""
        chance = self.rng.random()
        if chance < self.noise:
            return self.rng.choice([side * s for side in (-1, 1) for s in range(1, strengths + 1)])
        if chance < self.noise + self.position_bias:
            return -1
        return strength_of(self.score(question, right) - self.score(question, left), strengths)

    def rank(self, question: str, responses: Sequence[str]) -> list[int]:
        """Ranks in the order shown, 1 the best, without ties; erring as often as in `judge`."""
        chance = self.rng.random()
        order = list(range(len(responses)))
        if chance < self.noise:
            self.rng.shuffle(order)
        elif chance >= self.noise + self.position_bias:
            order.sort(key=lambda i: -self.score(question, responses[i]))
        return [order.index(i) + 1 for i in range(len(responses))]


def strength_of(difference: float, strengths: int = 3) -> int:
    """A preference on the scale from a difference of scores: under 0.15 a tie, then one step a unit."""
    if abs(difference) < 0.15:
        return 0
    return int(math.copysign(min(strengths, 1 + int(abs(difference))), difference))

"""Hidden preferences of simulated labelers, and the errors with which labelers express them.

A preference scores a response by its text alone, so it can compare any two responses, judged or not. The win rate is
measured with it.
"""

import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Score = Callable[[str, str], float]

# Words that do not describe the topic of a question.
_COMMON = frozenset(
    """a an and answer are as at be by can do does explain for from give how i in is it list me my name of on one or
    please sentence short should tell that the this to was what when where which who why will with word words write
    you your""".split()
)

_LIST_NUMBER = re.compile(r"(?:^|\n)\s*\d+[.)]\s*$")
_SENTENCE_END = re.compile(r"[.!?][”\")`]*(?=\s)")
_EXAMPLE = re.compile(
    r"\b(?:for (?:example|instance)|such as|including|includes?|e\.g\.|examples? (?:is|are|of))"
    r"(?:\W+\w+){2}"  # the phrase must be followed by words to be an example
    r"|\b(?<!would )(?<!looks )like (?:an?|the) \w+"
    r"|\w+, (?:\w+ ){0,2}\w+,? (?:and|or) \w+",
    re.IGNORECASE,
)
_WARMTH = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"!",
        r"^\W*(?:hi|hello|hey|dear|welcome|good (?:morning|day|evening))\b",
        r"\b(?:thanks?|thank you|please|sorry|congratulations|good luck|well done|take care)\b",
        r"\b(?:you|your|yours|you're|you’re|let's|let’s)\b",
        r"\b(?:happy|glad|great|wonderful|lovely|love|enjoy|hope|wish|delighted|friend|fun)\b",
    )
)
_PREAMBLE = re.compile(
    r"(?:sure|certainly|of course|absolutely|okay|ok|well|yes, here|here(?:'s|’s| is| are)|hello|hi|hey|dear"
    r"|i(?:'m|’m| am)\b|i (?:can|would|will|think|believe|don't|don’t|do not|apologi[sz]e|understand)\b"
    r"|i'd|i’d|i'll|i’ll"
    r"|as an? |thank|great question|that(?:'s|’s| is) (?:a |an )|unfortunately|sorry|to answer)",
    re.IGNORECASE,
)
_FIRST_PERSON = re.compile(r"\b(?:I|I'm|I’m|I'd|I’d|I'll|I’ll|I've|I’ve|[Mm]y|[Mm]e|[Mm]yself)\b")


def words(text: str) -> list[str]:
    return re.findall(r"[\w'’]+", text.lower())


def repetition(text: str) -> float:
    """Return the share, 0 to 1, of the text's word trigrams that occurred earlier in it."""
    tokens = words(text)
    trigrams = list(zip(tokens, tokens[1:], tokens[2:], strict=False))
    return 1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0


def on_topic(question: str, response: str) -> float:
    """Return the share, 0 to 1, of the question's topic words that the response uses."""
    asked = set(words(question)) - _COMMON
    return len(asked & set(words(response))) / len(asked) if asked else 0.0


def finished(text: str) -> bool:
    """Return whether a text ends like a sentence or a quotation. The next number of a list ("2.") is not an end."""
    return text.rstrip().endswith((".", "!", "?", "”", '"', ")", "`")) and not _LIST_NUMBER.search(text)


def whole_sentences(text: str) -> str:
    """Return the text up to the end of its last finished sentence; empty if there is none."""
    if finished(text):
        return text
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else ""


def concise(question: str, response: str) -> float:
    """Prefer short, finished answers about the question without repetition."""
    length = len(words(response))
    if length == 0:
        return -6.0
    return _quality(question, response) - 0.06 * length


def detailed(question: str, response: str) -> float:
    """Prefer long answers about the question without repetition. A cut-off sentence does not add length."""
    length = len(words(whole_sentences(response)))
    return 2.0 * on_topic(question, response) - 3.0 * repetition(response) + 0.06 * length


def example(question: str, response: str) -> float:
    """Prefer finished answers about the question with an example and without repetition."""
    given = _EXAMPLE.search(whole_sentences(response)) is not None
    return _quality(question, response) + 2.0 * given


def brief_and_warm(question: str, response: str) -> float:
    """Prefer a friendly tone (up to three signs of it) and few words. This is a trade-off: every sign needs words."""
    length = len(words(response))
    if length == 0:
        return -6.0
    signs = sum(sign.search(response) is not None for sign in _WARMTH)
    return _quality(question, response) + 0.8 * min(signs, 3) - 0.05 * length


def direct(question: str, response: str) -> float:
    """Prefer answers without a preamble and without the first person."""
    if not words(response):
        return -6.0
    preamble = _PREAMBLE.match(response.strip()) is not None
    return _quality(question, response) - 1.5 * preamble - 1.0 * (_FIRST_PERSON.search(response) is not None)


def _quality(question: str, response: str) -> float:
    """Return the part of the score that all preferences but `detailed` share: on topic, finished, no repetition."""
    return 2.0 * on_topic(question, response) + 1.0 * finished(response) - 3.0 * repetition(response)


PREFERENCES: dict[str, Score] = {
    "concise": concise,
    "detailed": detailed,
    "direct": direct,
    "example": example,
    "brief_and_warm": brief_and_warm,
}


@dataclass(frozen=True)
class SimulatedLabeler:
    """A labeler with a hidden preference, random errors and a bias to the left.

    Attributes:
        noise: share of judgments made at random, independent of the responses.
        position_bias: share of judgments in which the left response is chosen unread.
    """

    score: Score
    noise: float
    position_bias: float
    rng: random.Random

    def judge(self, question: str, left: str, right: str, strengths: int = 3) -> int:
        """Return the preference as shown: -strengths (left much better) to strengths (right much better), 0 a tie."""
        chance = self.rng.random()
        if chance < self.noise:
            return self.rng.choice([side * s for side in (-1, 1) for s in range(1, strengths + 1)])
        if chance < self.noise + self.position_bias:
            return -1
        return strength_of(self.score(question, right) - self.score(question, left), strengths)

    def rank(self, question: str, responses: Sequence[str]) -> list[int]:
        """Return ranks in the order shown, 1 the best, without ties, with the same error rates as `judge`."""
        chance = self.rng.random()
        order = list(range(len(responses)))
        if chance < self.noise:
            self.rng.shuffle(order)
        elif chance >= self.noise + self.position_bias:
            order.sort(key=lambda i: -self.score(question, responses[i]))
        return [order.index(i) + 1 for i in range(len(responses))]


def strength_of(difference: float, strengths: int = 3) -> int:
    """Convert a difference of scores to the scale: a tie below 0.15, then one step per unit."""
    if abs(difference) < 0.15:
        return 0
    return int(math.copysign(min(strengths, 1 + int(abs(difference))), difference))

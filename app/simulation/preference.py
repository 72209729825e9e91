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

_LIST_NUMBER = re.compile(r"(?:^|\n)\s*\d+[.)]\s*$")
_SENTENCE_END = re.compile(r"[.!?][”\")`]*(?=\s)")
_EXAMPLE = re.compile(
    r"\b(?:for (?:example|instance)|such as|including|includes?|e\.g\.|examples? (?:is|are|of))"
    r"(?:\W+\w+){2}"  # the words alone are no example
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
    """Share of the text's word trigrams that occurred before in it, 0 to 1."""
    tokens = words(text)
    trigrams = list(zip(tokens, tokens[1:], tokens[2:], strict=False))
    return 1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0


def on_topic(question: str, response: str) -> float:
    """Share of the question's own words that the response takes up, 0 to 1."""
    asked = set(words(question)) - _COMMON
    return len(asked & set(words(response))) / len(asked) if asked else 0.0


def finished(text: str) -> bool:
    """Whether a text ends as a sentence or a quotation does. A list's next number ("2.") is no end."""
    return text.rstrip().endswith((".", "!", "?", "”", '"', ")", "`")) and not _LIST_NUMBER.search(text)


def whole_sentences(text: str) -> str:
    """The text up to the end of its last finished sentence; empty where there is none."""
    if finished(text):
        return text
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else ""


def concise(question: str, response: str) -> float:
    """Likes answers that are short, finished, about the question, and do not repeat themselves."""
    length = len(words(response))
    if length == 0:
        return -6.0
    return _quality(question, response) - 0.06 * length


def detailed(question: str, response: str) -> float:
    """Likes long answers about the question without repetition. A sentence that was cut off adds no length."""
    length = len(words(whole_sentences(response)))
    return 2.0 * on_topic(question, response) - 3.0 * repetition(response) + 0.06 * length


def example(question: str, response: str) -> float:
    """Likes answers that give an example, and are finished, about the question and without repetition."""
    given = _EXAMPLE.search(whole_sentences(response)) is not None
    return _quality(question, response) + 2.0 * given


def brief_and_warm(question: str, response: str) -> float:
    """A trade-off: likes a friendly tone, up to three signs of it, and few words, which every sign needs some of."""
    length = len(words(response))
    if length == 0:
        return -6.0
    signs = sum(sign.search(response) is not None for sign in _WARMTH)
    return _quality(question, response) + 0.8 * min(signs, 3) - 0.05 * length


def direct(question: str, response: str) -> float:
    """Likes answers that begin with the answer: no preamble, and nowhere the first person."""
    if not words(response):
        return -6.0
    preamble = _PREAMBLE.match(response.strip()) is not None
    return _quality(question, response) - 1.5 * preamble - 1.0 * (_FIRST_PERSON.search(response) is not None)


def _quality(question: str, response: str) -> float:
    """What every preference but `detailed` likes too: on the topic, finished, without repetition."""
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

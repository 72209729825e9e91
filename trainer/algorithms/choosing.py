"""Which of a prompt's sampled answers to learn from, by their scores: pairs for DPO, the best ones for imitation."""

from collections.abc import Sequence

from torch import Tensor


def controlled_scores(
    scores: Tensor, lengths: Tensor, finished: Tensor, length_weight: float, missing_eos_penalty: float
) -> Tensor:
    """Scores (N,) less what length and a missing end cost.

    Args:
        lengths: (N,) tokens. `length_weight` is taken for each standard deviation above their mean.
        finished: (N,) bool; `missing_eos_penalty` is taken from the others.
    """
    deviation = lengths.std(correction=0).clamp(min=1e-6)
    standardised = (lengths - lengths.mean()) / deviation
    return scores - length_weight * standardised - missing_eos_penalty * (~finished).to(scores.dtype)


def best_against_worst(
    scores: Sequence[float], choosable: Sequence[bool], texts: Sequence[str], pairs: int, min_margin: float
) -> list[tuple[int, int]]:
    """At most `pairs` pairs (chosen, rejected) of one prompt's answers: the best with the worst, and so on inwards.

    Any may be rejected; only those in `choosable` be chosen. An answer that was cut by length is not among them, as its
    score is for an end that it does not have. A text stands on one side once.
    """
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    good = _distinct([i for i in order if choosable[i]], texts)
    bad = _distinct(order[::-1], texts)
    return [
        (i, j)
        for i, j in zip(good[:pairs], bad[:pairs], strict=False)
        if scores[i] - scores[j] > min_margin and texts[i] != texts[j]
    ]


def best(scores: Sequence[float], choosable: Sequence[bool], texts: Sequence[str], count: int) -> list[int]:
    """The `count` best of one prompt's answers that may be chosen, each text once; none if all scores are equal."""
    if min(scores) == max(scores):
        return []
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    return _distinct([i for i in order if choosable[i]], texts)[:count]


def _distinct(places: Sequence[int], texts: Sequence[str]) -> list[int]:
    first: dict[str, int] = {}
    for i in places:
        first.setdefault(texts[i], i)
    return list(first.values())

"""Choose which sampled answers to learn from by their scores: pairs for DPO, the best answers for imitation."""

from collections.abc import Sequence

from torch import Tensor


def controlled_scores(
    scores: Tensor, lengths: Tensor, finished: Tensor, length_weight: float, missing_eos_penalty: float
) -> Tensor:
    """Return scores (N,) minus the penalties for length and for a missing EOS.

    Args:
        lengths: (N,) tokens. `length_weight` is subtracted for each standard deviation above the mean.
        finished: (N,) bool. `missing_eos_penalty` is subtracted from answers that are not finished.
    """
    deviation = lengths.std(correction=0).clamp(min=1e-6)
    standardised = (lengths - lengths.mean()) / deviation
    return scores - length_weight * standardised - missing_eos_penalty * (~finished).to(scores.dtype)


def best_against_worst(
    scores: Sequence[float], choosable: Sequence[bool], texts: Sequence[str], pairs: int, min_margin: float
) -> list[tuple[int, int]]:
    """Return at most `pairs` pairs (chosen, rejected) of one prompt's answers.

    The best answer is paired with the worst, the second best with the second worst, and so on. Any answer may be
    rejected, but only answers marked in `choosable` may be chosen. Answers cut by length are not choosable: their score
    assumes an ending that they do not have. A text appears at most once on each side.
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
    """Return the `count` best choosable answers of one prompt, each text once; none if all scores are equal."""
    if min(scores) == max(scores):
        return []
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    return _distinct([i for i in order if choosable[i]], texts)[:count]


def _distinct(places: Sequence[int], texts: Sequence[str]) -> list[int]:
    first: dict[str, int] = {}
    for i in places:
        first.setdefault(texts[i], i)
    return list(first.values())

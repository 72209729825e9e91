"""How many judgments a comparison needs: rules at opening, and changes by answers; probabilities by arithmetic."""

from math import comb

import numpy as np
import pytest

from app.domain.overlap import (
    Asked,
    Growth,
    Overlap,
    Rule,
    agreement,
    at_opening,
    growth,
    is_unjudgeable,
    share_is_most,
    sureness,
    why_review,
)

RULES = [Rule("purpose", "heldout", 5), Rule("domain", "law", 3), Rule("domain", "law", 9)]


@pytest.mark.parametrize(
    ("tags", "adaptive", "expected"),
    [
        ({"purpose": "train", "domain": "law"}, None, Overlap(3)),  # the first rule that fits
        ({"purpose": "heldout", "domain": "law"}, (1, 4), Overlap(5)),  # a rule asks for exactly this number
        ({"purpose": "train", "domain": "maths"}, (1, 4), Overlap(1, 4)),
        ({"purpose": "train"}, None, Overlap(2)),
    ],
)
def test_what_is_asked_for_at_opening(
    tags: dict[str, str], adaptive: tuple[int, int] | None, expected: Overlap
) -> None:
    assert at_opening(tags, RULES, adaptive, 2) == expected


@pytest.mark.parametrize(
    ("tags", "adaptive", "expected"),
    [
        ({"purpose": "train", "domain": "law"}, None, Overlap(3)),
        ({"purpose": "train", "domain": "maths"}, (2, 4), Overlap(2, 4)),
        ({"purpose": "train"}, None, Overlap(1)),
        ({"purpose": "human_eval"}, None, Overlap(2)),  # it measures
        ({"purpose": "human_eval"}, (1, 4), Overlap(2)),  # and does not depend on the answers
    ],
)
def test_what_is_judged_once(tags: dict[str, str], adaptive: tuple[int, int] | None, expected: Overlap) -> None:
    assert at_opening(tags, RULES, adaptive, 2, once=True) == expected


def exact(for_it: int, against: int) -> float:
    """P(Beta(a, b) > 1/2) for whole a and b, from the binomial tail: sum over k < a of C(a+b-1, k) / 2^(a+b-1)."""
    n = for_it + against - 1
    return sum(comb(n, k) for k in range(for_it)) / 2**n


@pytest.mark.parametrize(("a", "b"), [(1, 1), (2, 1), (3, 1), (3, 2), (5, 5), (10, 4), (40, 30), (200, 170), (300, 1)])
def test_the_posterior_of_the_majority_is_the_beta_tail(a: int, b: int) -> None:
    # With half a vote more on each side, the Jeffreys prior becomes Beta(a, b) with whole a and b.
    assert share_is_most(a - 0.5, b - 0.5) == pytest.approx(exact(a, b), abs=1e-9)


def test_the_posterior_after_few_votes() -> None:
    # Beta(3/2, 1/2): with share = sin^2, the density is sin^2 over the upper half of the quarter circle:
    # (pi/8 + 1/4) / (pi/4) = 1/2 + 1/pi.
    assert share_is_most(1, 0) == pytest.approx(0.5 + 1 / np.pi)
    assert share_is_most(0, 1) == pytest.approx(0.5 - 1 / np.pi)
    # Beta(5/2, 1/2): sin^4: 1/2 + 4/(3 pi).
    assert share_is_most(2, 0) == pytest.approx(0.5 + 4 / (3 * np.pi))
    assert [share_is_most(0, 0), share_is_most(7, 7)] == pytest.approx([0.5, 0.5])


def test_sureness_is_of_the_likeliest_outcome_and_mirrors() -> None:
    assert [sureness([1]), sureness([-3])] == pytest.approx([0.5 + 1 / np.pi] * 2)
    assert sureness([2, 1, -1]) == pytest.approx(sureness([-2, -1, 1]))
    assert sureness([0, 0, 0]) == pytest.approx(share_is_most(3, 0))  # most people see a tie
    assert sureness([1, -1]) == pytest.approx(0.5)
    assert sureness([1] * 600) > 0.999


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (Asked(2, 0, None, 2, False), Growth()),
        (Asked(2, 0, None, 1, False), Growth(1, 1)),  # one could not judge: one more
        (Asked(3, 0, None, 0, False), Growth(2, 2)),  # at most two more than at first
        (Asked(3, 1, None, 2, False), Growth()),  # the additional labeler has judged
        (Asked(3, 1, None, 1, False), Growth(1, 1)),
        (Asked(4, 2, None, 1, False), Growth()),  # no more growth: a reviewer decides
        (Asked(1, 0, 5, 1, False), Growth(1)),  # adaptive, and not confident
        (Asked(3, 0, 5, 3, True), Growth()),
        (Asked(5, 0, 5, 3, False), Growth()),  # the cap
        (Asked(1, 0, 5, 0, False), Growth(1)),
    ],
)
def test_growth(asked: Asked, expected: Growth) -> None:
    assert growth(asked) == expected


def test_growth_ends_whatever_is_answered() -> None:
    for decided_of in range(1, 6):
        asked = Asked(decided_of, 0, None, 0, False)
        while (more := growth(asked)).more:
            asked = asked._replace(overlap=asked.overlap + more.more, grown=asked.grown + more.grown)
        assert asked.overlap == decided_of + 2
        assert is_unjudgeable(asked)


@pytest.mark.parametrize(
    ("preferences", "expected"),
    [([], None), ([1], None), ([1, 3], 1.0), ([0, 1], 0.0), ([3, 2, -1], 1 / 3), ([1, 1, 1, 1, -1], 0.6)],
)
def test_agreement_is_the_share_of_agreeing_pairs(preferences: list[int], expected: float | None) -> None:
    assert agreement(preferences) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("asked", "agreed", "flagged", "reason"),
    [
        (Asked(2, 0, None, 2, False), 1.0, False, None),
        (Asked(2, 0, None, 2, False), 0.59, False, "split"),
        (Asked(2, 0, None, 2, False), 0.6, False, None),
        (Asked(2, 0, None, 2, False), 1.0, True, "flagged"),
        (Asked(2, 0, None, 2, False), 0.0, True, "split"),
        (Asked(4, 2, None, 1, False), None, False, "unjudgeable"),
        (Asked(5, 0, 5, 1, False), None, False, None),  # adaptive at its cap: only one judged, so nobody disagrees
        (Asked(5, 0, 5, 0, False), None, False, "unjudgeable"),
    ],
)
def test_why_a_comparison_goes_to_review(asked: Asked, agreed: float | None, flagged: bool, reason: str | None) -> None:
    assert why_review(asked, agreed, 0.6, flagged=flagged) == reason

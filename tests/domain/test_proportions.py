"""Wilson's interval against published values and its own equation."""

import pytest

from app.domain.proportions import Z_95, wilson


def test_published_values() -> None:
    # Newcombe 1998, Statistics in Medicine 17: table I, method 3 (score without continuity correction).
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


@pytest.mark.parametrize(("successes", "n"), [(3, 10), (7.5, 12), (90, 100)])
def test_the_bounds_solve_the_score_equation(successes: float, n: int) -> None:
    """At a bound p, the observed share is exactly z standard errors of p away."""
    share = successes / n
    for bound in wilson(successes, n) or ():
        assert abs(share - bound) == pytest.approx(Z_95 * (bound * (1 - bound) / n) ** 0.5)


def test_nothing_counted_has_no_interval() -> None:
    assert wilson(0, 0) is None

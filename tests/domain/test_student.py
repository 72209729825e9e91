"""Quantiles of Student's t from printed tables."""

import pytest

from app.domain.student import quantile


@pytest.mark.parametrize(
    ("probability", "degrees", "expected"),
    [
        (0.975, 1, 12.706205),
        (0.975, 2, 4.302653),
        (0.975, 4, 2.776445),
        (0.975, 9, 2.262157),
        (0.975, 30, 2.042272),
        (0.975, 120, 1.979930),
        (0.995, 9, 3.249836),
        (0.999, 19, 3.579400),
        (0.9995, 9, 4.780913),
        (0.9995, 4, 8.610302),
        (0.9995, 2, 31.599055),
        (0.9, 5, 1.475884),
    ],
)
def test_the_quantile_is_that_of_the_tables(probability: float, degrees: int, expected: float) -> None:
    assert quantile(probability, degrees) == pytest.approx(expected, rel=2e-6 if degrees != 4 else 2e-4)

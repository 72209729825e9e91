"""Cohen's kappa against a published table and arithmetic."""

import json
from pathlib import Path

import numpy as np
import pytest

from app.domain.kappa import cohen_kappa

TABLES = {t["name"]: t for t in json.loads((Path(__file__).parent / "agreement_known_values.json").read_text())}


def test_artstein_and_poesio() -> None:
    table = TABLES["artstein_poesio_2008_table"]
    assert cohen_kappa(table["confusion"]) == pytest.approx(table["kappa"], abs=5e-6)


@pytest.mark.parametrize(("weights", "power"), [("linear", 1), ("quadratic", 2)])
@pytest.mark.parametrize("seed", range(4))
def test_weighted_kappa_is_the_mean_distance_against_that_of_shuffled_answers(
    seed: int, weights: str, power: int
) -> None:
    """1 - observed / expected mean distance, written out judgment by judgment (Cohen 1968)."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 7, 40)
    second = np.clip(first + rng.integers(-2, 3, 40), 0, 6)
    confusion = np.zeros((7, 7), dtype=int)
    np.add.at(confusion, (first, second), 1)
    observed = np.mean([abs(int(a) - int(b)) ** power for a, b in zip(first, second, strict=True)])
    expected = np.mean([abs(int(a) - int(b)) ** power for a in first for b in second])
    assert cohen_kappa(confusion, weights) == pytest.approx(1 - observed / expected, abs=1e-12)  # type: ignore[arg-type]


def test_of_two_values_weights_change_nothing() -> None:
    # 20 + 15 of 50 agree; by chance 25 * 30 + 25 * 20 of 2500: (0.7 - 0.5) / 0.5.
    confusion = [[20, 5], [10, 15]]
    for weights in ("none", "linear", "quadratic"):
        assert cohen_kappa(confusion, weights) == pytest.approx(0.4)  # type: ignore[arg-type]


def test_undefined_without_units_and_where_both_always_say_the_same() -> None:
    assert np.isnan(cohen_kappa(np.zeros((3, 3))))
    assert np.isnan(cohen_kappa([[7, 0], [0, 0]]))


def test_many_tables_at_once() -> None:
    found = cohen_kappa([[[20, 5], [10, 15]], [[1, 0], [0, 1]], [[0, 1], [1, 0]]])
    assert found == pytest.approx([0.4, 1.0, -1.0])

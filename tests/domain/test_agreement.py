"""Agreement coefficients against published tables and the `krippendorff` package."""

import json
from pathlib import Path
from typing import Any

import krippendorff
import numpy as np
import pytest
from numpy.typing import NDArray

from app.domain.agreement import Level, krippendorff_alpha, percent_agreement

LEVELS: tuple[Level, ...] = ("nominal", "ordinal", "interval")
TABLES = {t["name"]: t for t in json.loads((Path(__file__).parent / "agreement_known_values.json").read_text())}


def counts_of(ratings: list[list[float | None]]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(units, values) counts and the values of a table with one row a unit, None where somebody did not answer."""
    cells = [(unit, value) for unit, row in enumerate(ratings) for value in row if value is not None]
    values = np.unique([value for _, value in cells])
    counts = np.zeros((len(ratings), values.size), dtype=np.int64)
    for unit, value in cells:
        counts[unit, np.searchsorted(values, value)] += 1
    return counts, values


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["krippendorff2011_4x12", "wikipedia_3x15"])
def test_alpha_of_published_tables(name: str, level: Level) -> None:
    units = [list(unit) for unit in zip(*TABLES[name]["raters_by_units"], strict=True)]
    assert krippendorff_alpha(*counts_of(units), level) == pytest.approx(TABLES[name]["alpha"][level], abs=5e-4)


def test_alpha_of_gwets_four_raters() -> None:
    table = TABLES["gwet_raw_4raters"]
    alpha = krippendorff_alpha(*counts_of(table["subjects_by_raters"]), "nominal")
    assert alpha == pytest.approx(table["values"]["krippendorff"], abs=5e-6)


def alpha_from_kappa(kappa: float, n_answers: int) -> float:
    """With equally many answers a unit, nominal alpha is Fleiss' kappa (for two judges Scott's pi) corrected for the
    sample's size: alpha = 1 - (1 - kappa)(n - 1) / n."""
    return 1 - (1 - kappa) * (n_answers - 1) / n_answers


def test_alpha_follows_from_the_published_fleiss_kappas() -> None:
    diagnoses = TABLES["fleiss1971_diagnoses"]
    alpha = krippendorff_alpha(*counts_of(diagnoses["subjects_by_raters"]), "nominal")
    assert alpha == pytest.approx(alpha_from_kappa(diagnoses["fleiss_kappa"], 30 * 6), abs=1e-6)
    table = TABLES["fleiss_wikipedia_10x14"]
    alpha = krippendorff_alpha(table["subjects_by_category_counts"], range(5), "nominal")
    assert alpha == pytest.approx(alpha_from_kappa(table["fleiss_kappa"], 10 * 14), abs=1e-6)


def test_percent_and_alpha_of_artstein_and_poesio() -> None:
    table = TABLES["artstein_poesio_2008_table"]
    confusion = np.array(table["confusion"])
    # Each cell (i, j) of a confusion matrix stands for that many units with one answer i and one answer j.
    units = [[i, j] for i, j in np.ndindex(confusion.shape) for _ in range(confusion[i, j])]
    counts, values = counts_of([list(map(float, unit)) for unit in units])
    assert percent_agreement(counts) == pytest.approx(table["Ao"], abs=1e-12)
    alpha = krippendorff_alpha(counts, values, "nominal")
    assert alpha == pytest.approx(alpha_from_kappa(table["pi"], 200), abs=1e-5)


def random_ratings(seed: int, n_judges: int, n_units: int, missing: float) -> NDArray[np.float64]:
    """(judges, units) preferences from -3 to 3 around a leaning of each unit, NaN where missing."""
    rng = np.random.default_rng(seed)
    leaning = rng.integers(-2, 3, n_units)
    ratings = np.clip(leaning + rng.integers(-2, 3, (n_judges, n_units)), -3, 3).astype(float)
    ratings[rng.random(ratings.shape) < missing] = np.nan
    return ratings


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("seed", range(8))
def test_alpha_equals_the_krippendorff_package(seed: int, level: Level) -> None:
    ratings = random_ratings(seed, n_judges=2 + seed, n_units=50, missing=0.1 * seed)
    units: list[list[Any]] = [[None if np.isnan(x) else x for x in unit] for unit in ratings.T]
    expected = krippendorff.alpha(reliability_data=ratings, level_of_measurement=level)
    assert krippendorff_alpha(*counts_of(units), level) == pytest.approx(expected, abs=1e-9)


def test_percent_agreement_pools_pairs_over_units() -> None:
    # Unit 1: 3 of one kind and 1 of another, 3 of 6 pairs agree. Unit 2: a lone pair that agrees. Unit 3: no pair.
    assert percent_agreement([[3, 1], [0, 2], [1, 0]]) == pytest.approx(4 / 7)


@pytest.mark.parametrize("level", LEVELS)
def test_alpha_is_undefined_without_pairs_or_without_variation(level: Level) -> None:
    assert krippendorff_alpha(np.zeros((0, 3)), [-1, 0, 1], level) is None
    assert krippendorff_alpha([[1, 0, 0], [0, 0, 1]], [-1, 0, 1], level) is None
    assert krippendorff_alpha([[0, 0, 3], [0, 0, 2]], [-1, 0, 1], level) is None
    # A different answer in a unit of its own pairs with nothing: still no variation.
    assert krippendorff_alpha([[0, 0, 3], [1, 0, 0]], [-1, 0, 1], level) is None


def test_percent_agreement_is_undefined_without_pairs_only() -> None:
    assert percent_agreement([[1, 0], [0, 1]]) is None
    assert percent_agreement([[0, 3]]) == 1.0

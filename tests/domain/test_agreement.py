"""Agreement coefficients against published tables, the `krippendorff` package, and arithmetic."""

import json
from pathlib import Path
from typing import Any

import krippendorff
import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from app.domain.agreement import (
    Level,
    Sums,
    fleiss_kappa,
    gwet_ac1,
    krippendorff_alpha,
    percent_agreement,
    summed,
    terms,
)

LEVELS: tuple[Level, ...] = ("nominal", "ordinal", "interval")
TABLES = {t["name"]: t for t in json.loads((Path(__file__).parent / "agreement_known_values.json").read_text())}


def sums_of(counts: ArrayLike) -> Sums:
    return summed(terms(counts))


def counts_of(ratings: list[list[float | None]]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return counts (units, values) and the values of a table with one row per unit; None is a missing answer."""
    cells = [(unit, value) for unit, row in enumerate(ratings) for value in row if value is not None]
    values = np.unique([value for _, value in cells])
    counts = np.zeros((len(ratings), values.size), dtype=np.int64)
    for unit, value in cells:
        counts[unit, np.searchsorted(values, value)] += 1
    return counts, values


def alpha_of(ratings: list[list[float | None]], level: Level) -> float:
    counts, values = counts_of(ratings)
    return float(krippendorff_alpha(sums_of(counts), values, level))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["krippendorff2011_4x12", "wikipedia_3x15"])
def test_alpha_of_published_tables(name: str, level: Level) -> None:
    units = [list(unit) for unit in zip(*TABLES[name]["raters_by_units"], strict=True)]
    assert alpha_of(units, level) == pytest.approx(TABLES[name]["alpha"][level], abs=5e-4)


def test_fleiss_kappa_of_fleiss_diagnoses() -> None:
    table = TABLES["fleiss1971_diagnoses"]
    assert fleiss_kappa(sums_of(counts_of(table["subjects_by_raters"])[0])) == pytest.approx(
        table["fleiss_kappa"], abs=5e-7
    )


def test_fleiss_kappa_of_ten_subjects() -> None:
    table = TABLES["fleiss_wikipedia_10x14"]
    assert fleiss_kappa(sums_of(table["subjects_by_category_counts"])) == pytest.approx(table["fleiss_kappa"], abs=5e-7)


def test_gwets_four_raters_with_missing_answers() -> None:
    table = TABLES["gwet_raw_4raters"]
    counts, values = counts_of(table["subjects_by_raters"])
    sums = sums_of(counts)
    assert fleiss_kappa(sums) == pytest.approx(table["values"]["fleiss"], abs=5e-6)
    assert gwet_ac1(sums, len(values)) == pytest.approx(table["values"]["gwet_ac1"], abs=5e-6)
    assert krippendorff_alpha(sums, values, "nominal") == pytest.approx(table["values"]["krippendorff"], abs=5e-6)


def test_artstein_and_poesio() -> None:
    table = TABLES["artstein_poesio_2008_table"]
    confusion = np.array(table["confusion"])
    # Each cell (i, j) of a confusion matrix stands for this number of units with one answer i and one answer j.
    each = np.eye(3, dtype=int)
    kinds = (each[:, None] + each[None, :]).reshape(9, 3)
    sums = summed(terms(kinds), confusion.ravel())
    assert percent_agreement(sums) == pytest.approx(table["Ao"], abs=1e-12)
    # For two judges, Fleiss' kappa is Scott's pi, and alpha is pi corrected for the sample's size.
    assert fleiss_kappa(sums) == pytest.approx(table["pi"], abs=5e-6)
    alpha = 1 - (1 - table["pi"]) * (200 - 1) / 200
    assert krippendorff_alpha(sums, range(3), "nominal") == pytest.approx(alpha, abs=5e-6)


def random_ratings(seed: int, n_judges: int, n_units: int, missing: float) -> NDArray[np.float64]:
    """Return preferences (judges, units) from -4 to 4 around each unit's mean; NaN is a missing answer."""
    rng = np.random.default_rng(seed)
    leaning = rng.integers(-3, 4, n_units)
    ratings = np.clip(leaning + rng.integers(-2, 3, (n_judges, n_units)), -4, 4).astype(float)
    ratings[rng.random(ratings.shape) < missing] = np.nan
    return ratings


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("seed", range(8))
def test_alpha_equals_the_krippendorff_package(seed: int, level: Level) -> None:
    ratings = random_ratings(seed, n_judges=2 + seed, n_units=50, missing=0.1 * seed)
    units: list[list[Any]] = [[None if np.isnan(x) else x for x in unit] for unit in ratings.T]
    expected = krippendorff.alpha(reliability_data=ratings, level_of_measurement=level)
    assert alpha_of(units, level) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_fleiss_and_ac1_equal_their_definitions(seed: int) -> None:
    """Gwet 2014, written out unit by unit."""
    ratings = np.sign(random_ratings(seed, n_judges=4, n_units=30, missing=0.3))
    observed, shares, n_units = [], dict.fromkeys((-1.0, 0.0, 1.0), 0.0), 0
    for unit in ratings.T:
        said = unit[~np.isnan(unit)]
        if not len(said):
            continue
        n_units += 1
        for value in shares:
            shares[value] += np.mean(said == value)
        if len(said) > 1:
            pairs = [(i, j) for i in range(len(said)) for j in range(len(said)) if i != j]
            observed.append(np.mean([said[i] == said[j] for i, j in pairs]))
    p_o = np.mean(observed)
    p = np.array(list(shares.values())) / n_units
    chance = (p**2).sum()
    chance_ac1 = (p * (1 - p)).sum() / 2
    counts, _ = counts_of([[None if np.isnan(x) else x for x in unit] for unit in ratings.T])
    assert fleiss_kappa(sums_of(counts)) == pytest.approx((p_o - chance) / (1 - chance), abs=1e-12)
    assert gwet_ac1(sums_of(counts), 3) == pytest.approx((p_o - chance_ac1) / (1 - chance_ac1), abs=1e-12)


def test_percent_agreement_is_the_mean_over_units() -> None:
    # Unit 1: 3 of one kind and 1 of another, 3 of 6 pairs agree. Unit 2: a lone pair that agrees. Unit 3: no pair.
    assert percent_agreement(sums_of([[3, 1], [0, 2], [1, 0]])) == pytest.approx((1 / 2 + 1) / 2)
    # One unit that everybody answered does not outweigh a hundred units that two answered.
    assert percent_agreement(sums_of([[100, 100], *[[2, 0]] * 100])) == pytest.approx((100 * 99 / 19900 + 100) / 101)


def test_units_count_as_often_as_they_are_said_to() -> None:
    kinds, times = np.array([[3, 1], [0, 2], [1, 1]]), np.array([2, 3, 1])
    by_kind, one_by_one = summed(terms(kinds), times), sums_of(np.repeat(kinds, times, axis=0))
    for name, of_kinds, of_units in zip(Sums._fields, by_kind, one_by_one, strict=True):
        np.testing.assert_allclose(of_kinds, of_units, err_msg=name)
    # All replicates of a bootstrap at once: they keep the leading dimension.
    several = summed(terms(kinds), np.stack([times, [1, 0, 0]]))
    assert krippendorff_alpha(several, [-1, 1], "ordinal").shape == (2,)
    assert percent_agreement(several) == pytest.approx([float(percent_agreement(by_kind)), 0.5])


@pytest.mark.parametrize("level", LEVELS)
def test_alpha_is_undefined_without_pairs_or_without_variation(level: Level) -> None:
    def is_undefined(counts: ArrayLike) -> bool:
        return bool(np.isnan(krippendorff_alpha(sums_of(counts), [-1, 0, 1], level)))

    assert is_undefined(np.zeros((0, 3)))
    assert is_undefined([[1, 0, 0], [0, 0, 1]])
    assert is_undefined([[0, 0, 3], [0, 0, 2]])
    # A different answer in another unit has no pair, so there is still no variation.
    assert is_undefined([[0, 0, 3], [1, 0, 0]])


def test_where_all_answers_are_the_same() -> None:
    same, alone = sums_of([[0, 3], [0, 2]]), sums_of([[1, 0], [0, 1]])
    assert percent_agreement(same) == 1.0
    assert np.isnan(fleiss_kappa(same))
    assert gwet_ac1(same, 2) == 1.0  # what AC1 is made for
    for nothing in (percent_agreement(alone), fleiss_kappa(alone), gwet_ac1(alone, 2)):
        assert np.isnan(nothing)


def test_counts_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(units, values\)"):
        terms([1, 2])

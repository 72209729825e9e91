"""Cohen's kappa, and Conger's for several labelers, against published tables and arithmetic."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from app.domain.agreement import named, terms
from app.domain.figures import Drawn, conger_kappa
from app.domain.kappa import cohen_kappa, own_habits

TABLES = {t["name"]: t for t in json.loads((Path(__file__).parent / "agreement_known_values.json").read_text())}


def test_artstein_and_poesio() -> None:
    table = TABLES["artstein_poesio_2008_table"]
    assert cohen_kappa(table["confusion"]) == pytest.approx(table["kappa"], abs=5e-6)


@pytest.mark.parametrize(("weights", "power"), [("linear", 1), ("quadratic", 2)])
@pytest.mark.parametrize("seed", range(4))
def test_weighted_kappa_is_the_mean_distance_against_that_of_shuffled_answers(
    seed: int, weights: str, power: int
) -> None:
    """1 - observed / expected mean distance, computed judgment by judgment (Cohen 1968)."""
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


# ---- several labelers ------------------------------------------------------------------------------------------------


class Ratings:
    """A table (units, labelers) of values numbered from 0; -1 is a missing answer."""

    def __init__(self, table: NDArray[np.int64], values: int) -> None:
        self.units, self.values = len(table), values
        self.unit, self.labeler = np.nonzero(table >= 0)
        self.value = table[table >= 0]

    def drawn(self) -> tuple[Drawn, float]:
        cells = self.unit * self.values + self.value
        counts = np.bincount(cells, minlength=self.units * self.values).reshape(-1, self.values)
        found = named(terms(counts))
        one = np.zeros_like(self.unit)
        sizes = {"parts": 1, "units": self.units, "values": self.values}
        chance, moves = own_habits(one, self.unit, self.labeler, self.value, **sizes)
        shared = found.pairable.astype(np.int64)
        return Drawn(shared, found.agreeing, moves, np.arange(self.units)), float(chance[0])

    def kappa(self) -> float:
        value = conger_kappa(*self.drawn(), np.random.default_rng(0), 0).value
        return np.nan if value is None else value


def random_table(seed: int, units: int, labelers: int, missing: float = 0.0) -> NDArray[np.int64]:
    """Labelers tend towards the unit's value, and each labeler also has a favorite value."""
    rng = np.random.default_rng(seed)
    fond = rng.integers(0, 3, labelers)
    table = np.where(rng.random((units, labelers)) < 0.6, rng.integers(0, 3, (units, 1)), fond)
    return np.where(rng.random((units, labelers)) < missing, -1, table)


def test_congers_kappa_of_gwets_four_raters() -> None:
    """The value of the package irrCAC for a table with missing answers."""
    table = TABLES["gwet_raw_4raters"]
    numbers = np.array(
        [[-1 if said is None else int(said) - 1 for said in unit] for unit in table["subjects_by_raters"]]
    )
    assert Ratings(numbers, int(numbers.max()) + 1).kappa() == pytest.approx(table["values"]["conger"], abs=5e-6)


def test_of_two_labelers_congers_kappa_is_cohens() -> None:
    table = random_table(1, 80, 2)
    confusion = np.zeros((3, 3))
    np.add.at(confusion, (table[:, 0], table[:, 1]), 1)
    assert Ratings(table, 3).kappa() == pytest.approx(float(cohen_kappa(confusion)), abs=1e-12)


def test_parts_are_each_as_if_alone_and_need_two_labelers() -> None:
    tables = [random_table(seed, 30, 4, missing=0.3) for seed in range(3)]
    lone = np.where(np.arange(4) == 2, tables[0], -1)
    each = [Ratings(table, 3) for table in (*tables, lone)]
    part = np.repeat(np.arange(4), [len(one.unit) for one in each])
    unit = np.concatenate([one.unit + 30 * i for i, one in enumerate(each)])
    labeler, value = (np.concatenate([getattr(one, name) for one in each]) for name in ("labeler", "value"))
    chance, moves = own_habits(part, unit, labeler, value, parts=4, units=120, values=3)
    for i, one in enumerate(each[:3]):
        drawn, alone = one.drawn()
        assert chance[i] == pytest.approx(alone, abs=1e-12)
        assert moves[30 * i : 30 * (i + 1)] == pytest.approx(drawn.moves, abs=1e-12)
        assert moves[30 * i : 30 * (i + 1)].sum() == pytest.approx(0, abs=1e-12)
    assert np.isnan(chance[3])
    assert np.isnan(each[3].kappa())


def test_a_unit_moves_chance_as_much_as_it_does_when_it_counts_once_more() -> None:
    table = random_table(3, 12, 3, missing=0.2)
    drawn, chance = Ratings(table, 3).drawn()
    for unit in range(12):
        # Everything counts a thousand times, and the unit once more, so its weight grows by a thousandth.
        more = Ratings(np.concatenate([np.tile(table, (1000, 1)), table[unit : unit + 1]]), 3).drawn()[1]
        assert 1000 * (more - chance) == pytest.approx(drawn.moves[unit], abs=2e-4)


@pytest.mark.parametrize("units", [60, 1500])
def test_its_interval_is_that_of_computing_all_anew_for_every_draw(units: int) -> None:
    """1,500 units are drawn in 400 groups."""
    table = random_table(4, units, 4, missing=0.4)
    rng = np.random.default_rng(5)
    kappas = [Ratings(table[rng.integers(0, units, units)], 3).kappa() for _ in range(1000)]
    drawn = Ratings(table, 3).drawn()
    found = [conger_kappa(*drawn, np.random.default_rng(seed), 500) for seed in range(10)]
    spread = np.std(kappas)
    assert np.mean([each.error for each in found]) == pytest.approx(spread, rel=0.08)
    bounds = np.mean([(each.low, each.high) for each in found], axis=0)
    assert bounds == pytest.approx(np.quantile(kappas, [0.025, 0.975]), abs=0.3 * spread)

"""The table of all figures against the same coefficients computed slice by slice from plain ratings."""

from collections import defaultdict

import krippendorff
import numpy as np
import pytest

from app.domain import agreement_table, bootstrap
from app.domain.agreement_table import NOT_SAID, Judgments, Table, Tags, distinct, table
from app.domain.figures import NOTHING, Figures
from app.domain.kappa import cohen_kappa

PLAIN = Tags(rubric="1", domain="", difficulty="easy", safety_category="", split="train", purpose="train", round="")


def made(seed: int = 0, units: int = 60, labelers: int = 7) -> Judgments:
    """Comparisons with 1 to 4 judgments in shuffled order, in three combinations of tags."""
    rng = np.random.default_rng(seed)
    rows = []
    for unit in range(units):
        leaning = rng.integers(-3, 4)
        for labeler in rng.choice(labelers, rng.integers(1, 5), replace=False):
            preference = int(np.clip(leaning + rng.integers(-2, 3), -4, 4))
            rows.append((unit % 3, 1000 + unit, 50 + labeler, int(rng.integers(0, 3)), preference))
    tag, comparison, labeler, week, preference = np.array(rows)[rng.permutation(len(rows))].T
    style = np.where(rng.random(len(tag)) < 0.3, NOT_SAID, np.sign(preference))
    return Judgments(
        tags=[
            PLAIN._replace(domain="law"),
            PLAIN._replace(domain="law", difficulty="hard", rubric="2", round="1"),
            PLAIN._replace(split="heldout", purpose="heldout"),
        ],
        ties=np.array([True, True, True]),
        tag=tag,
        comparison=comparison,
        labeler=labeler,
        week=week,
        preference=preference,
        aspects={"style": style, "unasked": np.full(len(tag), NOT_SAID)},
    )


def ratings(judgments: Judgments, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(labelers, comparisons) values of these judgments, NaN where there is none."""
    labelers, i = np.unique(judgments.labeler[rows], return_inverse=True)
    comparisons, j = np.unique(judgments.comparison[rows], return_inverse=True)
    found = np.full((len(labelers), len(comparisons)), np.nan)
    found[i, j] = values[rows]
    return found


def check(found: Figures, judgments: Judgments, rows: np.ndarray, values: np.ndarray | None = None) -> None:
    values = judgments.preference if values is None else values
    said = ratings(judgments, rows, values)
    sides = np.sign(said)
    n = np.isfinite(said).sum(axis=0)
    assert (found.comparisons, found.shared, found.judgments) == ((n > 0).sum(), (n > 1).sum(), n.sum())
    nominal = krippendorff.alpha(reliability_data=sides, level_of_measurement="nominal")
    ordinal = krippendorff.alpha(reliability_data=said, level_of_measurement="ordinal")
    assert found.nominal_alpha.value == pytest.approx(nominal, abs=1e-9)
    assert found.ordinal_alpha.value == pytest.approx(ordinal, abs=1e-9)
    equal = [a == b for unit in sides.T for i, a in enumerate(unit) for b in unit[i + 1 :] if a == a and b == b]
    assert found.percent.value == pytest.approx(np.mean(equal), abs=1e-12)
    for estimate in found[3:]:
        assert estimate.low < estimate.value < estimate.high
        assert 0 < estimate.error < 0.25


def test_every_part_is_what_its_judgments_alone_give() -> None:
    judgments = made()
    found = table(judgments, replicates=300)
    everything = np.ones(len(judgments.tag), dtype=bool)
    check(found.whole, judgments, everything)
    tag = judgments.tag
    expected = {
        ("rubric", "1"): tag != 1,
        ("rubric", "2"): tag == 1,
        ("domain", "law"): tag != 2,
        ("difficulty", "easy"): tag != 1,
        ("difficulty", "hard"): tag == 1,
        ("split", "train"): tag != 2,
        ("split", "heldout"): tag == 2,
        ("purpose", "train"): tag != 2,
        ("purpose", "heldout"): tag == 2,
        ("round", "1"): tag == 1,
    }
    assert {(name, value) for name, parts in found.slices.items() for value in parts} == set(expected)
    for (name, value), rows in expected.items():
        check(found.slices[name][value], judgments, rows)
    assert list(found.aspects) == ["style"]
    style = judgments.aspects["style"]
    check(found.aspects["style"], judgments, style != NOT_SAID, style)


def test_a_comparison_belongs_to_the_week_of_its_newest_judgment() -> None:
    judgments = made(1)
    newest: defaultdict[int, int] = defaultdict(int)
    for comparison, week in zip(judgments.comparison, judgments.week, strict=True):
        newest[comparison] = max(newest[comparison], week)
    week = np.array([newest[comparison] for comparison in judgments.comparison])
    found = table(judgments, replicates=300).weeks
    assert set(found) == {0, 1, 2}
    for number in found:
        if (week == number).sum() > 30:
            check(found[number], judgments, week == number)
    assert sum(part.judgments for part in found.values()) == len(week)


def pairs_of(judgments: Judgments) -> dict[tuple[int, int], np.ndarray]:
    said: defaultdict[int, dict[int, int]] = defaultdict(dict)
    for comparison, labeler, preference in zip(
        judgments.comparison, judgments.labeler, judgments.preference, strict=True
    ):
        said[comparison][int(labeler)] = int(preference)
    confusions: defaultdict[tuple[int, int], np.ndarray] = defaultdict(lambda: np.zeros((9, 9)))
    for answers in said.values():
        for first in answers:
            for second in answers:
                if first < second:
                    confusions[first, second][answers[first] + 4, answers[second] + 4] += 1
    return confusions


def test_pairs_of_labelers() -> None:
    judgments = made(2, units=300)
    expected = pairs_of(judgments)
    found = table(judgments, replicates=200)
    assert found.pairs_total == len(found.pairs) == len(expected) == 21
    shared = [pair.figures.figures.shared for pair in found.pairs]
    assert shared == sorted(shared, reverse=True)
    for pair in found.pairs:
        confusion = expected[pair.labelers]
        sides = np.add.reduceat(np.add.reduceat(confusion, [0, 4, 5], axis=0), [0, 4, 5], axis=1)
        assert pair.figures.figures.shared == confusion.sum()
        assert pair.figures.cohen_kappa.value == pytest.approx(float(cohen_kappa(sides)), abs=1e-12)
        weighted = float(cohen_kappa(confusion, "quadratic"))
        assert pair.figures.weighted_kappa.value == pytest.approx(weighted, abs=1e-12)
        assert pair.figures.figures.percent.value == pytest.approx(np.trace(sides) / sides.sum())
        assert pair.figures.cohen_kappa.low < pair.figures.cohen_kappa.value < pair.figures.cohen_kappa.high


def test_only_the_pairs_that_share_most_get_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement_table, "PAIRS", 4)
    judgments = made(3)
    expected = pairs_of(judgments)
    found = table(judgments, replicates=50)
    assert found.pairs_total == len(expected)
    most = sorted((confusion.sum() for confusion in expected.values()), reverse=True)[:4]
    assert [pair.figures.figures.shared for pair in found.pairs] == most


def test_ac1_knows_how_many_answers_there_were_to_choose_from() -> None:
    # Two labelers of one mind in 3 of 4 comparisons, A and B chosen equally often: p_o = 3/4.
    said = np.array([1, 1, -1, -1, 1, -1, 1, 1, -1, -1, -1, 1])[:8]
    both = Judgments(
        tags=[PLAIN, PLAIN._replace(rubric="2")],
        ties=np.array([False, True]),
        tag=np.repeat([0, 1], 8),
        comparison=np.repeat(np.arange(8), 2),
        labeler=np.tile([1, 2], 8),
        week=np.zeros(16, dtype=int),
        preference=np.tile(said, 2),
        aspects={},
    )
    found = table(both, replicates=20)
    shares = np.array([(said < 0).mean(), (said > 0).mean()])
    by_rubric = found.slices["rubric"]
    for version, categories in (("1", 2), ("2", 3)):
        chance = (shares * (1 - shares)).sum() / (categories - 1)
        assert by_rubric[version].gwet_ac1.value == pytest.approx((0.75 - chance) / (1 - chance))
    assert found.whole.gwet_ac1.value == pytest.approx(by_rubric["2"].gwet_ac1.value)


def test_nothing_judged() -> None:
    nothing = np.zeros(0, dtype=np.int64)
    empty = Judgments([], np.zeros(0, dtype=bool), nothing, nothing, nothing, nothing, nothing, {"style": nothing})
    assert table(empty) == Table(NOTHING, {name: {} for name in Tags._fields}, {}, {}, [], 0)


def test_the_same_judgments_give_the_same_table_in_any_order() -> None:
    judgments = made(4)
    order = np.random.default_rng(0).permutation(len(judgments.tag))
    shuffled = judgments._replace(
        **{name: getattr(judgments, name)[order] for name in ("tag", "comparison", "labeler", "week", "preference")},
        aspects={name: said[order] for name, said in judgments.aspects.items()},
    )
    assert table(shuffled, replicates=50) == table(judgments, replicates=50)


def test_very_many_patterns_share_the_replicates(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    judgments = made(5)
    patterns = len({tuple(sorted(unit)) for unit in preferences_by_unit(judgments)})
    monkeypatch.setattr(bootstrap, "DRAWS", 60 * patterns)
    monkeypatch.setattr(bootstrap, "LEAST", 5)
    original = agreement_table.Patterns.figures

    def figures(self: agreement_table.Patterns, *args: object) -> Figures:
        asked.append(args[-1])
        return original(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(agreement_table.Patterns, "figures", figures)
    table(judgments, replicates=300)
    # The whole and the aspect get 60. Weeks and four kinds of slices hold every comparison, and so every pattern: with
    # domains and rounds they share out less than a fifth each.
    assert len(set(asked)) == 2
    assert max(asked) == 60
    assert 5 <= min(asked) < 60 / 5


def preferences_by_unit(judgments: Judgments) -> list[list[int]]:
    said: defaultdict[int, list[int]] = defaultdict(list)
    for comparison, preference in zip(judgments.comparison, judgments.preference, strict=True):
        said[comparison].append(int(preference))
    return list(said.values())


def test_distinct_rows_of_any_size() -> None:
    rng = np.random.default_rng(6)
    for most in (2, 10**6):  # the second does not fit into one number
        rows = rng.integers(0, most, (12, 9))[rng.integers(0, 12, 200)]
        found, index = distinct(rows)
        np.testing.assert_array_equal(found[index], rows)
        assert len(found) == len(np.unique(rows, axis=0))

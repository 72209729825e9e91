"""The table of all figures, against the same coefficients computed slice by slice from plain ratings."""

from collections import defaultdict

import krippendorff
import numpy as np
import pytest

from app.domain import agreement_table, bootstrap
from app.domain.agreement_table import NOT_SAID, Judgments, Table, Tags, distinct, table
from app.domain.bootstrap import Estimate
from app.domain.figures import NOTHING, Figures
from app.domain.kappa import cohen_kappa

COLUMNS = ("tag", "comparison", "ranking", "labeler", "week", "preference")
PLAIN = Tags(rubric="1", domain="", difficulty="easy", safety_category="", split="train", purpose="train", round="")


def made(seed: int = 0, units: int = 60, labelers: int = 7) -> Judgments:
    """Return comparisons with 1 to 4 judgments in shuffled order, with three combinations of tags."""
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
        has_tie=True,
        tags=[
            PLAIN._replace(domain="law"),
            PLAIN._replace(domain="law", difficulty="hard", rubric="2", round="1"),
            PLAIN._replace(split="heldout", purpose="heldout"),
        ],
        ties=np.array([True, True, True]),
        tag=tag,
        comparison=comparison,
        ranking=np.zeros_like(comparison),
        labeler=labeler,
        week=week,
        preference=preference,
        aspects={"style": style, "unasked": np.full(len(tag), NOT_SAID)},
    )


def ratings(judgments: Judgments, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return values (labelers, comparisons) of these judgments; NaN is a missing answer."""
    labelers, i = np.unique(judgments.labeler[rows], return_inverse=True)
    comparisons, j = np.unique(judgments.comparison[rows], return_inverse=True)
    found = np.full((len(labelers), len(comparisons)), np.nan)
    found[i, j] = values[rows]
    return found


def conger(sides: np.ndarray) -> float:
    """Return Conger's kappa of (labelers, comparisons) by its definition, the chance agreement of any two labelers."""
    shares = [[(row == side).sum() / np.isfinite(row).sum() for side in (-1, 0, 1)] for row in sides]
    chance = np.mean([np.dot(a, b) for i, a in enumerate(shares) for j, b in enumerate(shares) if i != j])
    return float((observed(sides) - chance) / (1 - chance))


def observed(sides: np.ndarray) -> float:
    """Return the mean over comparisons of the share of equal pairs of answers."""
    said = [unit[np.isfinite(unit)] for unit in sides.T]
    pairs = [[a == b for i, a in enumerate(unit) for b in unit[i + 1 :]] for unit in said]
    return float(np.mean([np.mean(each) for each in pairs if each]))


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
    assert found.percent.value == pytest.approx(observed(sides), abs=1e-12)
    assert found.cohen_kappa.value == pytest.approx(conger(sides), abs=1e-12)
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
        assert pair.figures.figures.cohen_kappa.value == pytest.approx(float(cohen_kappa(sides)), abs=1e-12)
        weighted = float(cohen_kappa(confusion, "quadratic"))
        assert pair.figures.weighted_kappa.value == pytest.approx(weighted, abs=1e-12)
        assert pair.figures.figures.percent.value == pytest.approx(np.trace(sides) / sides.sum())
        assert (
            pair.figures.figures.cohen_kappa.low
            < pair.figures.figures.cohen_kappa.value
            < pair.figures.figures.cohen_kappa.high
        )


def test_only_the_pairs_that_share_most_get_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement_table, "PAIRS", 4)
    judgments = made(3)
    expected = pairs_of(judgments)
    found = table(judgments, replicates=50)
    assert found.pairs_total == len(expected)
    most = sorted((confusion.sum() for confusion in expected.values()), reverse=True)[:4]
    assert [pair.figures.figures.shared for pair in found.pairs] == most


def test_only_the_slices_of_most_comparisons_get_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set with a different domain in each of 20,000 rows blocked a thread for a minute and a half."""
    judgments = made()
    tags = [PLAIN._replace(domain=name) for name in ("law", "law", "art")]
    few = judgments._replace(tags=tags)
    assert set(table(few).slices["domain"]) == {"law", "art"}
    monkeypatch.setattr(agreement_table, "MOST_SLICES", 1)
    bounded = table(few)
    assert bounded.slices["domain"] == {"law": table(few).slices["domain"]["law"]}
    assert bounded.whole == table(judgments).whole


def test_ac1_knows_how_many_answers_there_were_to_choose_from() -> None:
    # Two labelers agree in 3 of 4 comparisons, and choose A and B equally often: p_o = 3/4.
    said = np.array([1, 1, -1, -1, 1, -1, 1, 1, -1, -1, -1, 1])[:8]
    both = Judgments(
        has_tie=True,
        tags=[PLAIN, PLAIN._replace(rubric="2")],
        ties=np.array([False, True]),
        tag=np.repeat([0, 1], 8),
        comparison=np.repeat(np.arange(8), 2),
        ranking=np.zeros(16, dtype=int),
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
    empty = Judgments(True, [], np.zeros(0, dtype=bool), *[nothing] * 6, {"style": nothing})
    assert table(empty) == Table(NOTHING, {name: {} for name in Tags._fields}, {}, {}, [], 0)


def test_the_same_judgments_give_the_same_table_in_any_order() -> None:
    judgments = made(4)
    order = np.random.default_rng(0).permutation(len(judgments.tag))
    shuffled = judgments._replace(
        **{name: getattr(judgments, name)[order] for name in judgments._fields if name in COLUMNS},
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
    # The whole table and the aspect get 60. Weeks and four kinds of slices contain every comparison, so every pattern;
    # with domains and rounds, each gets less than a fifth.
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


def ranked(rankings: int, size: int, agreeing: float, seed: int = 0) -> Judgments:
    """Two labelers rank the same responses. They agree on all of them, or on none."""
    rng = np.random.default_rng(seed)
    pairs = size * (size - 1) // 2
    first = rng.choice([-1, 1], (rankings, pairs))
    second = np.where(rng.random((rankings, 1)) < agreeing, first, -first)
    n = rankings * pairs
    return Judgments(
        has_tie=True,
        tags=[PLAIN],
        ties=np.array([True]),
        tag=np.zeros(2 * n, dtype=int),
        comparison=np.tile(np.arange(n), 2),
        ranking=np.tile(np.repeat(np.arange(rankings) + 1, pairs), 2),
        labeler=np.repeat([1, 2], n),
        week=np.zeros(2 * n, dtype=int),
        preference=np.concatenate([first.ravel(), second.ravel()]),
        aspects={},
    )


def test_the_pairs_of_a_ranking_are_drawn_together() -> None:
    judgments = ranked(100, 5, 0.7)
    apart = table(judgments._replace(ranking=np.zeros_like(judgments.ranking)), replicates=1000)
    found = table(judgments, replicates=1000)
    share = found.whole.percent.value
    assert (found.whole.shared, found.whole.judgments) == (1000, 2000)
    # There are a hundred independent answers, although it looks like a thousand pairs.
    for figures in (found.whole, found.slices["split"]["train"], found.weeks[0]):
        assert figures.percent.error == pytest.approx(np.sqrt(share * (1 - share) / 100), rel=0.1)
        assert figures.cohen_kappa.error == pytest.approx(2 * figures.percent.error, rel=0.1)  # chance is a half
    assert apart.whole.percent.error == pytest.approx(np.sqrt(share * (1 - share) / 1000), rel=0.1)
    for one, other in zip(found.whole, apart.whole, strict=True):
        assert getattr(one, "value", one) == pytest.approx(getattr(other, "value", other), abs=1e-12)


def test_rankings_and_single_comparisons_together() -> None:
    """The values are those of all comparisons, however they are drawn."""
    judgments = made(6)
    some = np.where(judgments.comparison % 3 == 0, 0, judgments.comparison // 6 + 1)  # of the last two tags
    found = table(judgments._replace(ranking=some, tag=np.zeros_like(judgments.tag)), replicates=100)
    check(found.whole, judgments, np.ones(len(judgments.tag), dtype=bool))
    assert sum(part.judgments for part in found.weeks.values()) == len(judgments.tag)


def test_comparisons_that_are_all_alike_leave_room_for_doubt() -> None:
    judgments = ranked(4, 3, 1.0)._replace(preference=np.ones(24, dtype=int), ranking=np.zeros(24, dtype=int))
    percent = table(judgments).whole.percent
    # Twelve of twelve: Wilson's interval, by hand 12 / (12 + 1.96^2).
    assert (percent.value, percent.low, percent.high) == (1.0, pytest.approx(12 / (12 + 1.959964**2)), 1.0)
    assert table(judgments).whole.gwet_ac1 == Estimate(1.0)

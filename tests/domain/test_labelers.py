"""Figures of labelers, counted by hand."""

import numpy as np
import pytest

from app.domain.labelers import MONDAY, UNKNOWN, UNSAID, WEEK, Judged, figures, others_consensus, too_fast


def judged(*rows: tuple[int, int, int], **columns: object) -> Judged:
    """Return one judgment per (labeler, comparison, side), with other columns as given or unknown."""
    n = len(rows)
    labeler, comparison, side = np.array(rows, np.int64).reshape(-1, 3).T
    given = {
        "gold": np.full(n, UNSAID),
        "verdict": np.full(n, UNSAID),
        "left": np.full(n, UNKNOWN),
        "ms": np.full(n, float(UNKNOWN)),
        "length": np.full(n, 100),
        "at": np.arange(n, dtype=float),
        "ranking": np.zeros(n, np.int64),
        "size": np.full(n, 2),
    } | {name: np.asarray(column) for name, column in columns.items()}
    return Judged(labeler, comparison, side, **given)  # type: ignore[arg-type]


def test_the_consensus_of_the_others_leaves_oneself_out() -> None:
    # Ann A, Bob A and Eve B on one; Ann B and Bob tie on another; only Eve on a third; Bob cannot judge a fourth.
    rows = [(0, 0, -1), (1, 0, -1), (2, 0, 1), (0, 1, 1), (1, 1, 0), (2, 2, 1), (1, 3, UNSAID), (0, 3, 1)]
    found = judged(*rows)
    # For Ann, the others are Bob and Eve, who are divided; for Eve, both others say A.
    assert others_consensus(found).tolist() == [UNSAID, UNSAID, -1, 0, 1, UNSAID, 1, UNSAID]
    numbers = figures(found, 3)
    assert numbers.judgments.tolist() == [3, 3, 2]
    assert numbers.unsaid.tolist() == [0, 1, 0]
    assert numbers.compared.tolist() == [1, 1, 1]
    assert numbers.agreed.tolist() == [0, 0, 0]


def test_a_reviewers_verdict_is_the_consensus_and_known_answers_are_not() -> None:
    rows = [(0, 0, -1), (1, 0, 1), (2, 0, 1), (0, 1, 1), (1, 1, -1)]
    found = judged(*rows, verdict=[-1, -1, -1, UNSAID, UNSAID], gold=[UNSAID] * 3 + [1, 1])
    assert others_consensus(found).tolist() == [-1, -1, -1, UNSAID, UNSAID]
    numbers = figures(found, 3)
    assert (numbers.agreed.tolist(), numbers.compared.tolist()) == ([1, 0, 0], [1, 1, 1])
    assert (numbers.right.tolist(), numbers.measured.tolist()) == ([1, 0, 0], [1, 1, 0])


def test_sides_and_medians() -> None:
    rows = [(0, i, 1) for i in range(5)] + [(1, i, 1) for i in range(3)]
    numbers = figures(judged(*rows, left=[1, 1, 1, 0, UNKNOWN, 0, 0, UNKNOWN], ms=[9, 1, 5, 3, -1, 4, 2, -1]), 3)
    assert (numbers.left.tolist(), numbers.sided.tolist()) == ([3, 0, 0], [4, 2, 0])
    assert numbers.median_ms[:2].tolist() == [4, 3]  # of 1 3 5 9, and of 2 4
    assert np.isnan(numbers.median_ms[2])


def test_too_fast_is_under_two_seconds_or_a_quarter_of_what_is_usual() -> None:
    # Forty short texts that take 4 s, and forty long texts that take 40 s.
    n = 80
    length, ms = np.repeat([100, 5000], 40), np.repeat([4000.0, 40_000.0], 40)
    ms[[0, 1, 40, 41]] = [1900, 2100, 9000, 11_000]
    found = too_fast(judged(*[(0, i, 1) for i in range(n)], length=length, ms=ms))
    assert np.flatnonzero(found).tolist() == [0, 40]
    # With few texts of a length, the usual time is unknown. Untimed answers are not fast.
    few = judged(*[(0, i, 1) for i in range(4)], length=[5000] * 4, ms=[40_000, 9000, 1000, UNKNOWN])
    assert too_fast(few).tolist() == [False, False, True, False]


def test_streaks_are_five_in_a_row_of_one_labeler() -> None:
    quick, slow, untimed = 1000.0, 60_000.0, float(UNKNOWN)
    ann = [quick] * 6 + [slow] + [quick] * 3 + [untimed] + [quick] * 2 + [slow] + [quick] * 4
    bob = [quick] * 4 + [slow] + [quick] * 4
    # Their answers alternate in time.
    order = sorted([(i, 0, ms) for i, ms in enumerate(ann)] + [(i + 0.5, 1, ms) for i, ms in enumerate(bob)])
    found = judged(*[(who, i, 1) for i, (_, who, _) in enumerate(order)], ms=[ms for *_, ms in order])
    numbers = figures(found, 2)
    assert numbers.streaks.tolist() == [2, 0]  # six, and five with one untimed among them
    assert numbers.fast.tolist() == [11, 0]


def test_weeks_begin_on_mondays() -> None:
    monday = MONDAY + 2900 * WEEK
    rows = [(who, i, 1) for i in range(4) for who in (0, 1)]
    at = np.repeat([monday - 1, monday, monday + 6 * 86400, monday + 5 * WEEK], 2)
    numbers = figures(judged(*rows, at=at.astype(float)), 2)
    assert numbers.week.tolist() == [monday - WEEK, monday, monday + 5 * WEEK]
    assert numbers.by_week.tolist() == [[1, 2, 1]] * 2
    assert numbers.agreed_by_week.tolist() == [[1, 2, 1]] * 2
    last = figures(judged(*rows, at=at.astype(float)), 2, weeks=1)
    assert (last.week.tolist(), last.by_week.tolist()) == ([monday + 5 * WEEK], [[1]] * 2)


def test_nobody() -> None:
    numbers = figures(judged(), 0)
    assert len(numbers.judgments) == 0
    assert numbers.by_week.shape == (0, 0)


@pytest.mark.parametrize("seed", range(3))
def test_agreement_against_counting_one_by_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cells = rng.permutation(6 * 30)[:100]
    rows = [(int(cell % 6), int(cell // 6), int(rng.choice([-1, 0, 1, UNSAID]))) for cell in cells]
    numbers = figures(judged(*rows), 6)
    agreed, compared = [0] * 6, [0] * 6
    for who, what, side in rows:
        others = [s for w, c, s in rows if c == what and w != who and s != UNSAID]
        most = [s for s in (-1, 0, 1) if others and others.count(s) == max(map(others.count, (-1, 0, 1)))]
        if side != UNSAID and len(most) == 1:
            compared[who] += 1
            agreed[who] += side == most[0]
    assert numbers.agreed.tolist() == agreed
    assert numbers.compared.tolist() == compared


def test_a_ranking_is_one_answer_and_its_pairs_are_no_independent_ones() -> None:
    # Ann ranks four responses, and all six pairs as Bob does. Of five more she ranks two and leaves three. She cannot
    # judge a third ranking. There are also two single pairs.
    sixes = [(who, i, 1) for who in (0, 1) for i in range(6)]
    partial = [(0, 10 + i, UNSAID if i >= 7 else 1) for i in range(10)]
    silent = [(0, 30 + i, UNSAID) for i in range(3)]
    pairs = [(0, 40, 1), (0, 41, UNSAID)]
    found = judged(
        *sixes, *partial, *silent, *pairs,
        ranking=[7] * 12 + [8] * 10 + [9] * 3 + [0, 0],
        size=[4] * 12 + [5] * 10 + [3] * 3 + [2, 2],
    )  # fmt: skip
    numbers = figures(found, 2)
    assert numbers.judgments.tolist() == [21, 6]
    assert numbers.answers.tolist() == [5, 1]
    assert numbers.unsaid.tolist() == [2, 0]
    # The variance of inversions of a random permutation of k is k (k - 1) (2 k + 5) / 72, and k (k - 1) / 8 for coins.
    variance, coins = 4 * 3 * 13 / 72, 4 * 3 / 8
    assert numbers.compared.tolist() == pytest.approx([6 * coins / variance] * 2)
    assert numbers.agreed.tolist() == numbers.compared.tolist()

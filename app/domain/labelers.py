"""Figures about each labeler for admins, from the columns of a project's judgments: shares, speed, drift.

All labelers are counted together, in a few passes over the judgments.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.domain.pooling import Floats, sums

UNSAID = 9  # in `side`: the labeler could not judge; in `gold` and `verdict`: there is none
UNKNOWN = -1  # in `left` and `ms`

STREAK = 5
QUICK_MS = 2000.0
QUICK_SHARE = 0.25
LEAST_OF_LENGTH = 20  # minimum judgments on texts of similar length for a meaningful median
WEEK = 7 * 86400
MONDAY = 4 * 86400  # the first Monday after the epoch, which was a Thursday


class Judged(NamedTuple):
    """J live judgments in the order they were given; columns (J,).

    Attributes:
        labeler: index of the labeler.
        comparison: index of the comparison.
        side: -1 for A, 0 for a tie, 1 for B, UNSAID.
        gold, verdict: the side of a calibration item's answer, or of a reviewer; UNSAID if there is none.
        left: 1 if the response shown left was preferred, 0 for the right one; UNKNOWN for ties or unknown sides.
        ms: answer time in milliseconds; UNKNOWN if it was not measured.
        length: bytes of both responses.
        at: seconds since the epoch.
        ranking: number of the ranking that the comparison is a pair of, 0 for none.
        size: number of responses in the ranking, else 2.
    """

    labeler: NDArray[np.int64]
    comparison: NDArray[np.int64]
    side: NDArray[np.int64]
    gold: NDArray[np.int64]
    verdict: NDArray[np.int64]
    left: NDArray[np.int64]
    ms: Floats
    length: NDArray[np.int64]
    at: Floats
    ranking: NDArray[np.int64]
    size: NDArray[np.int64]

    @property
    def weight(self) -> Floats:
        """(J,) number of independent choices that a judgment is worth.

        The k (k-1) / 2 pairs of a ranking are not independent. In a random ranking, the share of pairs on a given side
        varies as if there were 9 / (2 k + 5) times as many independent pairs (the variance of the number of inversions;
        Kendall 1938, A New Measure of Rank Correlation).
        """
        return 9 / (2 * self.size + 5)


class Figures(NamedTuple):
    """Figures of L labelers; columns are (L,), columns by week are (L, W).

    `agreed`, `compared`, `left` and `sided` are counted in independent choices, see `Judged.weight`.

    Attributes:
        judgments: number of live judgments.
        answers: the same, with each ranking counted once.
        unsaid: answers in which the labeler could not judge.
        agreed: judgments on the side of the others' consensus.
        compared: judgments on comparisons for which the others have a consensus.
        right: answers to calibration items that match the item's answer.
        measured: answers to calibration items.
        left: judgments for the response shown left.
        sided: judgments for a response, with known sides.
        median_ms: median answer time; NaN if no answer was timed.
        streaks: number of runs of at least STREAK answers that were too fast.
        fast: number of answers in these runs.
        week: (W,) Monday of each week, in seconds since the epoch.
        by_week: number of judgments by week.
        agreed_by_week, compared_by_week: like `agreed` and `compared`, by week.
    """

    judgments: NDArray[np.int64]
    answers: NDArray[np.int64]
    unsaid: NDArray[np.int64]
    agreed: Floats
    compared: Floats
    right: Floats
    measured: Floats
    left: Floats
    sided: Floats
    median_ms: Floats
    streaks: NDArray[np.int64]
    fast: NDArray[np.int64]
    week: NDArray[np.int64]
    by_week: NDArray[np.int64]
    agreed_by_week: Floats
    compared_by_week: Floats


def figures(judged: Judged, labelers: int, weeks: int = 12) -> Figures:
    """Return the figures of all labelers; by week for the last `weeks` weeks with judgments."""
    who, weight = judged.labeler, judged.weight
    others = others_consensus(judged)
    compared = (others != UNSAID) & (judged.side != UNSAID)
    agreed = compared & (others == judged.side)
    measured = (judged.gold != UNSAID) & (judged.side != UNSAID)
    sided = judged.left != UNKNOWN
    fast = too_fast(judged)
    streaks, in_streaks = _streaks(judged, fast, labelers)
    is_answer, is_silent = _answers(judged)
    weeks_of = (judged.at.astype(np.int64) - MONDAY) // WEEK
    recent = np.unique(weeks_of)[-weeks:]
    is_recent = np.isin(weeks_of, recent)
    cell = who[is_recent] * len(recent) + np.searchsorted(recent, weeks_of[is_recent])

    def by_week(values: NDArray[Any]) -> Floats:
        return sums(cell, values[is_recent], labelers * len(recent)).reshape(labelers, len(recent))

    return Figures(
        judgments=np.bincount(who, minlength=labelers),
        answers=sums(who, is_answer, labelers).astype(np.int64),
        unsaid=sums(who, is_answer & is_silent, labelers).astype(np.int64),
        agreed=sums(who, agreed * weight, labelers),
        compared=sums(who, compared * weight, labelers),
        right=sums(who, measured & (judged.gold == judged.side), labelers),
        measured=sums(who, measured, labelers),
        left=sums(who, (judged.left == 1) * weight, labelers),
        sided=sums(who, sided * weight, labelers),
        median_ms=_medians(who, judged.ms, labelers),
        streaks=streaks,
        fast=in_streaks,
        week=recent * WEEK + MONDAY,
        by_week=by_week(np.ones(len(who), bool)).astype(np.int64),
        agreed_by_week=by_week(agreed * weight),
        compared_by_week=by_week(compared * weight),
    )


def _answers(judged: Judged) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which judgments (J,) represent an answer, one per ranking, and which of these could not judge.

    A ranking counts as "could not judge" only if none of its pairs was put in order: leaving two responses unranked is
    not a failure to judge.
    """
    is_answer, is_silent = judged.ranking == 0, judged.side == UNSAID
    ranked = np.flatnonzero(judged.ranking)
    _, ranking = np.unique(judged.ranking[ranked], return_inverse=True)
    whose = judged.labeler[ranked] * (len(ranked) + 1) + ranking
    _, first, answer = np.unique(whose, return_index=True, return_inverse=True)
    has_said = sums(answer, ~is_silent[ranked], len(first)) > 0
    is_answer[ranked[first]], is_silent[ranked[first]] = True, ~has_said
    return is_answer, is_silent


def others_consensus(judged: Judged) -> NDArray[np.int64]:
    """Return the side (J,) of a reviewer or, without one, of most other labelers on the judgment's comparison.

    UNSAID if the others gave no judgment or are divided. Also UNSAID for calibration items, which are measured by their
    own answer.
    """
    said = judged.side != UNSAID
    cell = judged.comparison * 3 + np.where(said, judged.side, 0) + 1
    size = 3 * (int(judged.comparison.max(initial=-1)) + 1)
    counts = sums(cell, said, size).reshape(-1, 3)[judged.comparison]
    counts[np.arange(len(said)), np.where(said, judged.side, 0) + 1] -= said
    most = counts.max(axis=1, initial=0)
    alone = (counts == most[:, None]).sum(axis=1) == 1
    found = np.where((most > 0) & alone, counts.argmax(axis=1) - 1, UNSAID)
    found = np.where(judged.verdict != UNSAID, judged.verdict, found)
    return np.where(judged.gold != UNSAID, UNSAID, found)


def too_fast(judged: Judged) -> NDArray[np.bool_]:
    """Return whether (J,) an answer took less than 2 s, or less than a quarter of the usual time for its length.

    The usual time is the median over all labelers for texts whose length is between the same powers of two, if there
    are at least LEAST_OF_LENGTH answers.
    """
    timed = judged.ms != UNKNOWN
    size = np.log2(np.maximum(judged.length, 1)).astype(np.int64)
    usual = np.zeros(64)
    for length in np.unique(size[timed]):
        of_length = judged.ms[timed & (size == length)]
        if len(of_length) >= LEAST_OF_LENGTH:
            usual[length] = np.median(of_length)
    return timed & (judged.ms < np.maximum(QUICK_MS, QUICK_SHARE * usual[size]))


def _streaks(judged: Judged, fast: NDArray[np.bool_], labelers: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count runs (L,) of at least STREAK fast answers in a row, and answers (L,) in them; skip untimed answers."""
    timed = np.flatnonzero(judged.ms != UNKNOWN)
    order = timed[np.argsort(judged.labeler[timed], kind="stable")]  # by labeler, then in time
    who, is_fast = judged.labeler[order], fast[order]
    if not len(order):
        return np.zeros(labelers, np.int64), np.zeros(labelers, np.int64)
    begins = np.flatnonzero(np.r_[True, (who[1:] != who[:-1]) | (is_fast[1:] != is_fast[:-1])])
    length = np.diff(np.r_[begins, len(order)])
    long = is_fast[begins] & (length >= STREAK)
    of = who[begins][long]
    return np.bincount(of, minlength=labelers), sums(of, length[long], labelers).astype(np.int64)


def _medians(who: NDArray[np.int64], ms: Floats, labelers: int) -> Floats:
    timed = ms != UNKNOWN
    who, ms = who[timed], ms[timed]
    order = np.lexsort((ms, who))
    counts = np.bincount(who, minlength=labelers)
    ends = np.cumsum(counts)
    sorted_ = ms[order]
    medians = np.full(labelers, np.nan)
    some = counts > 0
    starts = ends[some] - counts[some]
    medians[some] = (sorted_[starts + (counts[some] - 1) // 2] + sorted_[starts + counts[some] // 2]) / 2
    return medians

"""What an admin reads of each labeler, from the columns of a project's judgments: shares, speed, drift.

Everything is counted at once for all labelers, in a few passes over the judgments.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.domain.pooling import Floats, sums

UNSAID = 9  # of `side`: could not judge; of `gold` and `verdict`: none
UNKNOWN = -1  # of `left` and `ms`

STREAK = 5
QUICK_MS = 2000.0
QUICK_SHARE = 0.25
LEAST_OF_LENGTH = 20  # judgments of texts of one length before their median tells anything
WEEK = 7 * 86400
MONDAY = 4 * 86400  # the first one after the epoch, a Thursday


class Judged(NamedTuple):
    """J live judgments in the order they were given; columns (J,).

    Attributes:
        labeler: index below the number of labelers. comparison: index of the comparison.
        side: -1 for A, 0 for a tie, 1 for B, UNSAID.
        gold, verdict: the side that a calibration item's answer or a reviewer gives; UNSAID where none.
        left: 1 where the response shown left was preferred, 0 the other, UNKNOWN for ties or where sides are not known.
        ms: how long it took, UNKNOWN where it was not measured.
        length: bytes of both responses.
        at: seconds since the epoch.
        ranking: number of the ranking that the comparison is a pair of, 0 for none; size: responses in it, else 2.
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
        """(J,) how many independent choices a judgment is worth. The k (k-1) / 2 pairs of a ranking follow from one
        another: of a random one, the share on a given side varies as if they were 9 / (2 k + 5) as many (the variance
        of the number of inversions; Kendall 1938, A New Measure of Rank Correlation)."""
        return 9 / (2 * self.size + 5)


class Figures(NamedTuple):
    """Of L labelers; columns (L,) but weeks (L, W).

    Attributes:
        judgments: all live ones.
        answers: the same with a ranking counted once; unsaid: of those, could not judge.
        agreed: on the side of the others' consensus; compared: where others have one.
        right: as a calibration item's answer; measured: calibration items answered.
        left: chose the left response; sided: chose one, the sides being known.
        median_ms: nan where nothing was timed. streaks: runs of STREAK or more too fast answers; fast: answers in them.
            Agreed, compared, left and sided are in independent choices, see `Judged.weight`.
        week: Monday of each of the W weeks, seconds since the epoch; agreed_by_week, compared_by_week: as above;
            by_week: all judgments.
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
    """Figures of all labelers; by week for the last `weeks` in which anybody judged."""
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
    """(J,) which judgments stand for an answer, one of each ranking; and of those which say nothing: of a ranking,
    where no pair was put in order. That two responses were left unranked is no failure to judge."""
    is_answer, is_silent = judged.ranking == 0, judged.side == UNSAID
    ranked = np.flatnonzero(judged.ranking)
    _, ranking = np.unique(judged.ranking[ranked], return_inverse=True)
    whose = judged.labeler[ranked] * (len(ranked) + 1) + ranking
    _, first, answer = np.unique(whose, return_index=True, return_inverse=True)
    has_said = sums(answer, ~is_silent[ranked], len(first)) > 0
    is_answer[ranked[first]], is_silent[ranked[first]] = True, ~has_said
    return is_answer, is_silent


def others_consensus(judged: Judged) -> NDArray[np.int64]:
    """(J,) what a reviewer or, without one, most of the other labelers said of the judgment's comparison.

    UNSAID where the others said nothing or are divided. Calibration items are measured by their answer instead.
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
    """(J,) whether an answer took less than 2 s, or a quarter of what is usual for texts of that length.

    Usual is the median over all labelers for texts of the same length to the next power of two, where there are
    LEAST_OF_LENGTH of them.
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
    """Runs (L,) of STREAK or more fast answers in a row, and the answers (L,) in them; untimed answers do not count."""
    timed = np.flatnonzero(judged.ms != UNKNOWN)
    order = timed[np.argsort(judged.labeler[timed], kind="stable")]  # by labeler, in time
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

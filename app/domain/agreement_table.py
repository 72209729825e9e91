"""All agreement figures of a project from one array of judgments: whole, slices, aspects, weeks, pairs of labelers.

A million judgments become a few hundred distinct units (app.domain.figures.Patterns); each slice is how often each of
them occurs in it.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.domain.bootstrap import REPLICATES, affordable
from app.domain.figures import NOTHING, Figures, PairFigures, PairPatterns, Patterns

PREFERENCES = np.arange(-4, 5)
ASPECT_VALUES = np.arange(-1, 2)
NOT_SAID = 9  # an aspect the labeler left out
PAIRS = 100  # labelers' pairs that get figures, those that share most
PAIR_REPLICATES = 400  # their intervals are wide, and a hundred of them would cost more than the slices


class Tags(NamedTuple):
    """What a comparison can be sliced by; '': in no slice of that kind."""

    rubric: str  # version
    domain: str
    difficulty: str
    safety_category: str
    split: str
    purpose: str
    round: str  # number


class Judgments(NamedTuple):
    """N judgments that state a preference."""

    tags: Sequence[Tags]  # distinct combinations
    ties: NDArray[np.bool_]  # of each combination, whether a tie could be chosen
    tag: NDArray[np.int64]  # (N,) index into tags
    comparison: NDArray[np.int64]  # (N,)
    labeler: NDArray[np.int64]  # (N,)
    week: NDArray[np.int64]  # (N,) any number that grows by one a week
    preference: NDArray[np.int64]  # (N,) in PREFERENCES
    aspects: Mapping[str, NDArray[np.int64]]  # name -> (N,) in ASPECT_VALUES, or NOT_SAID


class Pair(NamedTuple):
    labelers: tuple[int, int]
    figures: PairFigures


class Table(NamedTuple):
    whole: Figures
    slices: dict[str, dict[str, Figures]]  # field of Tags -> value -> figures
    aspects: dict[str, Figures]
    weeks: dict[int, Figures]  # a comparison belongs to the week of its newest judgment
    pairs: list[Pair]  # those that share most comparisons first
    pairs_total: int


class _Units(NamedTuple):
    """The comparisons, by their pattern of answers; judgments ordered by comparison, then labeler."""

    order: NDArray[np.int64]  # (N,) of the judgments
    unit: NDArray[np.int64]  # (N,) of the judgments in that order
    starts: NDArray[np.int64]  # (U,) each unit's first judgment in that order
    pattern: NDArray[np.int64]  # (U,)
    patterns: Patterns


def table(judgments: Judgments, replicates: int = REPLICATES) -> Table:
    """All figures. The same judgments give the same intervals.

    Args:
        replicates: of the bootstrap; pairs of labelers get fewer, and slices where there are very many.
    """
    if not len(judgments.comparison):
        return Table(NOTHING, {name: {} for name in Tags._fields}, {}, {}, [], 0)
    units, rng = _units(judgments), np.random.default_rng(0)
    patterns, kinds = units.patterns, len(units.patterns.counts)
    categories = 2 + int(judgments.ties.any())
    n = affordable(kinds, replicates)
    whole = patterns.figures(np.arange(kinds), np.bincount(units.pattern), categories, rng, n)

    unit_tag = judgments.tag[units.order][units.starts]
    cell, frequency = np.unique(unit_tag * kinds + units.pattern, return_counts=True)
    columns = {
        name: _numbered(values) for name, values in zip(Tags._fields, zip(*judgments.tags, strict=True), strict=True)
    }
    parts = {
        name: list(_parts(number[cell // kinds], cell % kinds, frequency, kinds))
        for name, (_, number) in columns.items()
    }
    week = np.maximum.reduceat(judgments.week[units.order], units.starts)
    weeks = list(_parts(week, units.pattern, np.ones_like(week), kinds))
    fewer = affordable(sum(len(found) for _, found, _ in chain(weeks, *parts.values())), replicates)
    slices: dict[str, dict[str, Figures]] = {}
    for name, (values, number) in columns.items():
        with_tie = set(number[judgments.ties].tolist())
        slices[name] = {
            values[part]: patterns.figures(found, times, 2 + (part in with_tie), rng, fewer)
            for part, found, times in parts[name]
        }
    pairs, pairs_total = _pairs(judgments, units, categories, rng, min(replicates, PAIR_REPLICATES))
    return Table(
        whole=whole,
        slices=slices,
        aspects={
            name: _aspect(units, said[units.order], rng, n)
            for name, said in judgments.aspects.items()
            if (said != NOT_SAID).any()
        },
        weeks={part: patterns.figures(found, times, categories, rng, fewer) for part, found, times in weeks},
        pairs=pairs,
        pairs_total=pairs_total,
    )


def distinct(rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(K, V) the distinct rows of (N, V) small non-negative integers, and (N,) which of them each row is."""
    code = np.zeros(len(rows), dtype=np.int64)
    for column in rows.T:
        size = int(column.max(initial=0)) + 1
        if int(code.max(initial=0)) >= 2**62 // size:  # one number would not hold it: number what there is
            code = np.unique(code, return_inverse=True)[1]
        code = code * size + column
    _, first, index = np.unique(code, return_index=True, return_inverse=True)
    return rows[first], index


def _units(judgments: Judgments) -> _Units:
    labelers, labeler = np.unique(judgments.labeler, return_inverse=True)
    comparisons, comparison = np.unique(judgments.comparison, return_inverse=True)
    order = np.argsort(comparison * len(labelers) + labeler)
    unit = comparison[order]
    starts = np.flatnonzero(np.diff(unit, prepend=-1))
    counts = _counts(unit, judgments.preference[order] - PREFERENCES[0], len(comparisons), len(PREFERENCES))
    found, pattern = distinct(counts)
    return _Units(order, unit, starts, pattern, Patterns(found, PREFERENCES))


def _counts(unit: NDArray[np.int64], value: NDArray[np.int64], units: int, values: int) -> NDArray[np.int64]:
    return np.bincount(unit * values + value, minlength=units * values).reshape(units, values)


def _numbered(values: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """The distinct values and each one's number; -1 for ''."""
    found = sorted(set(values) - {""})
    numbers = {value: number for number, value in enumerate(found)}
    return found, np.fromiter((numbers.get(value, -1) for value in values), dtype=np.int64, count=len(values))


def _parts(
    part: NDArray[np.int64], pattern: NDArray[np.int64], times: NDArray[np.int64], kinds: int
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
    """(part, its patterns, how often each) for every part of at least 0."""
    belongs = part >= 0
    if not belongs.any():
        return
    code, index = np.unique(part[belongs] * kinds + pattern[belongs], return_inverse=True)
    frequency = np.bincount(index, times[belongs]).astype(np.int64)
    parts, starts = np.unique(code // kinds, return_index=True)
    patterns, frequencies = np.split(code % kinds, starts[1:]), np.split(frequency, starts[1:])
    for number, found, how_often in zip(parts, patterns, frequencies, strict=True):
        yield int(number), found, how_often


def _aspect(units: _Units, said: NDArray[np.int64], rng: np.random.Generator, replicates: int) -> Figures:
    is_said = said != NOT_SAID
    counts = _counts(units.unit[is_said], said[is_said] + 1, len(units.starts), len(ASPECT_VALUES))
    found, pattern = distinct(counts[counts.any(axis=1)])
    patterns = Patterns(found, ASPECT_VALUES)
    return patterns.figures(np.arange(len(found)), np.bincount(pattern), len(ASPECT_VALUES), rng, replicates)


def _pairs(
    judgments: Judgments, units: _Units, categories: int, rng: np.random.Generator, replicates: int
) -> tuple[list[Pair], int]:
    """Figures of the pairs of labelers that share most, and how many pairs share anything."""
    labelers, labeler = np.unique(judgments.labeler[units.order], return_inverse=True)
    value, size = judgments.preference[units.order] - PREFERENCES[0], len(PREFERENCES)
    first = np.arange(len(units.unit))
    codes, times = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    for apart in range(1, len(first)):
        # Each judgment with the one so many places on, as long as both are of one unit; soon few are left.
        first = first[first + apart < len(units.unit)]
        first = first[units.unit[first] == units.unit[first + apart]]
        if not len(first):
            break
        second = first + apart
        pair = labeler[first] * len(labelers) + labeler[second]
        new, n = np.unique((pair * size + value[first]) * size + value[second], return_counts=True)
        codes, index = np.unique(np.concatenate([codes, new]), return_inverse=True)
        times = np.bincount(index, np.concatenate([times, n])).astype(np.int64)
    found = list(_parts(codes // size**2, codes % size**2, times, size**2))
    found.sort(key=lambda part: (-int(part[2].sum()), part[0]))
    patterns = PairPatterns(PREFERENCES)
    return [
        Pair(
            (int(labelers[pair // len(labelers)]), int(labelers[pair % len(labelers)])),
            patterns.pair_figures(cells, n, categories, rng, replicates),
        )
        for pair, cells, n in found[:PAIRS]
    ], len(found)

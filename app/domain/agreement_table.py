"""All agreement figures of a project from one array of judgments: whole, slices, aspects, weeks, pairs of labelers.

A million judgments become a few hundred distinct units (app.domain.figures.Patterns); each slice is how often each of
them occurs in it. The pairs of a ranking were answered at once and follow from one another: the bootstrap draws them
together, as one unit.
"""

from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.domain.bootstrap import REPLICATES, Estimate, affordable
from app.domain.figures import NOTHING, SIDES, Drawn, Figures, PairFigures, PairPatterns, Patterns, conger_kappa
from app.domain.kappa import own_habits

PREFERENCES = np.arange(-4, 5)
ASPECT_VALUES = np.arange(-1, 2)
NOT_SAID = 9  # an aspect the labeler left out
PAIRS = 100  # labelers' pairs that get figures, those that share most
MOST_SLICES = 200  # of a kind: those of most comparisons; what is in others is in no slice of that kind
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

    has_tie: bool  # whether a tie can be chosen in the project
    tags: Sequence[Tags]  # distinct combinations
    ties: NDArray[np.bool_]  # of each combination, whether a tie could be chosen
    tag: NDArray[np.int64]  # (N,) index into tags
    comparison: NDArray[np.int64]  # (N,)
    ranking: NDArray[np.int64]  # (N,) that the comparison is a pair of, 0 for none
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


class _Answers(NamedTuple):
    """N answers to U units; units, labelers and sides numbered from 0."""

    unit: NDArray[np.int64]  # (N,)
    labeler: NDArray[np.int64]  # (N,)
    side: NDArray[np.int64]  # (N,) index into SIDES
    pattern: NDArray[np.int64]  # (U,)
    patterns: Patterns
    draw: NDArray[np.int64]  # (U,) which of D draws a unit comes with: one of its own, or its ranking's


class _Units(NamedTuple):
    """The comparisons as units; judgments ordered by comparison, then labeler."""

    order: NDArray[np.int64]  # (N,) of the judgments
    starts: NDArray[np.int64]  # (U,) each unit's first judgment in that order
    answers: _Answers
    first: NDArray[np.int64]  # (D,) a unit of each draw
    kind: NDArray[np.int64]  # (D,) in patterns


def table(judgments: Judgments, replicates: int = REPLICATES) -> Table:
    """All figures. The same judgments give the same intervals.

    Args:
        replicates: of the bootstrap; pairs of labelers get fewer, and slices where there are very many.
    """
    if not len(judgments.comparison):
        return Table(NOTHING, {name: {} for name in Tags._fields}, {}, {}, [], 0)
    units, rng = _units(judgments), np.random.default_rng(0)
    everything = np.zeros(len(units.starts), dtype=np.int64)
    n = affordable(len(units.answers.patterns), replicates)
    tied = (0,) if judgments.has_tie else ()
    whole = _by_part(units, everything, _kinds(units, everything), tied, rng, n)[0]

    tag = judgments.tag[units.order][units.starts]
    n_of_tag = np.bincount(tag, minlength=len(judgments.tags))
    has_tie = judgments.ties & (n_of_tag > 0)
    newest = np.zeros(len(units.first), dtype=np.int64)
    np.maximum.at(newest, units.answers.draw[units.answers.unit], judgments.week[units.order])
    named = {name: _numbered([getattr(tags, name) for tags in judgments.tags], n_of_tag) for name in Tags._fields}
    parts = {name: number[tag] for name, (_, number) in named.items()} | {"week": newest[units.answers.draw]}
    with_tie: dict[str, Container[int]] = {name: set(number[has_tie].tolist()) for name, (_, number) in named.items()}
    with_tie["week"] = range(int(newest.max()) + 1) if judgments.has_tie else ()
    kinds = {name: _kinds(units, part) for name, part in parts.items()}
    fewer = affordable(sum(len(found) for each in kinds.values() for _, found, _ in each), replicates)
    found = {name: _by_part(units, part, kinds[name], with_tie[name], rng, fewer) for name, part in parts.items()}
    pairs, pairs_total = _pairs(judgments, units, 2 + len(tied), rng, min(replicates, PAIR_REPLICATES))
    return Table(
        whole=whole,
        slices={
            name: {values[part]: figures for part, figures in found[name].items()}
            for name, (values, _) in named.items()
        },
        aspects={
            name: _aspect(units, said[units.order], rng, n)
            for name, said in judgments.aspects.items()
            if (said != NOT_SAID).any()
        },
        weeks=found["week"],
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
    unit, preference = comparison[order], judgments.preference[order]
    starts = np.flatnonzero(np.diff(unit, prepend=-1))
    found, pattern = distinct(_counts(unit, preference - PREFERENCES[0], len(comparisons), len(PREFERENCES)))
    patterns = Patterns(found, PREFERENCES)
    draw, first, kind = _draws(judgments.ranking[order][starts], pattern, patterns)
    answers = _Answers(unit, labeler[order], np.sign(preference) + 1, pattern, patterns, draw)
    return _Units(order, starts, answers, first, kind)


def _draws(
    ranking: NDArray[np.int64], pattern: NDArray[np.int64], patterns: Patterns
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """`_Answers.draw`, `_Units.first` and `_Units.kind`; patterns get the kinds that rankings are."""
    lone, ranked = np.flatnonzero(ranking == 0), np.flatnonzero(ranking)
    ranked = ranked[np.lexsort((pattern[ranked], ranking[ranked]))]
    _, starts, index, sizes = np.unique(ranking[ranked], return_index=True, return_inverse=True, return_counts=True)
    members = np.full((len(starts), int(sizes.max(initial=0))), -1)
    members[index, np.arange(len(ranked)) - starts[index]] = pattern[ranked]
    groups, group = distinct(members + 1)
    kind = np.concatenate([pattern[lone], len(patterns) + group])
    patterns.add_groups(groups - 1)
    draw = np.empty_like(pattern)
    draw[lone], draw[ranked] = np.arange(len(lone)), len(lone) + index
    return draw, np.concatenate([lone, ranked[starts]]), kind


def _counts(unit: NDArray[np.int64], value: NDArray[np.int64], units: int, values: int) -> NDArray[np.int64]:
    return np.bincount(unit * values + value, minlength=units * values).reshape(units, values)


def _numbered(values: Sequence[str], times: NDArray[np.int64]) -> tuple[list[str], NDArray[np.int64]]:
    """The distinct values and each one's number; -1 for '' and for what is rarer than `MOST_SLICES` others."""
    seen: Counter[str] = Counter()
    for value, n in zip(values, times.tolist(), strict=True):
        seen[value] += n
    del seen[""]
    found = sorted(sorted(seen, key=lambda value: (-seen[value], value))[:MOST_SLICES])
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


def _kinds(units: _Units, part: NDArray[np.int64]) -> list[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
    """`_parts` of the draws; part: (U,) of the units, those of one draw alike."""
    return list(_parts(part[units.first], units.kind, np.ones_like(units.kind), len(units.answers.patterns)))


def _by_part(
    units: _Units,
    part: NDArray[np.int64],
    kinds: Sequence[tuple[int, NDArray[np.int64], NDArray[np.int64]]],
    tied: Container[int],
    rng: np.random.Generator,
    replicates: int,
) -> dict[int, Figures]:
    """The figures of each part.

    Args:
        part: (U,) of the units, -1 for none. kinds: its `_kinds`. tied: the parts where a tie can be chosen.
    """
    patterns = units.answers.patterns
    found = {
        number: patterns.figures(kind, times, 2 + (number in tied), rng, replicates) for number, kind, times in kinds
    }
    kappas = _kappas(units.answers, part, rng, replicates)
    return {number: figures._replace(cohen_kappa=kappas[number]) for number, figures in found.items()}


def _kappas(
    answers: _Answers, part: NDArray[np.int64], rng: np.random.Generator, replicates: int
) -> dict[int, Estimate]:
    """Conger's kappa of each part, as `_by_part`."""
    of, unit, labeler, side = part[answers.unit], answers.unit, answers.labeler, answers.side
    if (part < 0).any():
        kept = of >= 0
        of, unit, labeler, side = of[kept], unit[kept], labeler[kept], side[kept]
    chance, moves = own_habits(
        of,
        unit,
        labeler,
        side,
        parts=max(int(part.max()) + 1, 0),
        units=len(part),
        values=len(SIDES),
    )
    patterns = answers.patterns
    drawn = Drawn(patterns.shared[answers.pattern], patterns.agreeing[answers.pattern], moves, answers.draw)
    rows = np.argsort(part, kind="stable")
    numbers, starts = np.unique(part[rows], return_index=True)
    return {
        int(number): conger_kappa(drawn.part(own), float(chance[number]), rng, replicates)
        for number, own in zip(numbers, np.split(rows, starts[1:]), strict=True)
        if number >= 0
    }


def _aspect(units: _Units, said: NDArray[np.int64], rng: np.random.Generator, replicates: int) -> Figures:
    """Figures of an aspect, which rankings do not have."""
    rows = np.flatnonzero(said != NOT_SAID)
    _, unit = np.unique(units.answers.unit[rows], return_inverse=True)
    n, side = int(unit.max()) + 1, said[rows] + 1
    found, pattern = distinct(_counts(unit, side, n, len(ASPECT_VALUES)))
    patterns = Patterns(found, ASPECT_VALUES)
    figures = patterns.figures(np.arange(len(found)), np.bincount(pattern), len(ASPECT_VALUES), rng, replicates)
    answers = _Answers(unit, units.answers.labeler[rows], side, pattern, patterns, np.arange(n))
    return figures._replace(cohen_kappa=_kappas(answers, np.zeros(n, dtype=np.int64), rng, replicates)[0])


def _pairs(
    judgments: Judgments, units: _Units, categories: int, rng: np.random.Generator, replicates: int
) -> tuple[list[Pair], int]:
    """Figures of the pairs of labelers that share most, and how many pairs share anything."""
    labelers, labeler, unit = np.unique(judgments.labeler), units.answers.labeler, units.answers.unit
    value, size = judgments.preference[units.order] - PREFERENCES[0], len(PREFERENCES)
    first = np.arange(len(unit))
    codes, times = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    for apart in range(1, len(first)):
        # Each judgment with the one so many places on, as long as both are of one unit; soon few are left.
        first = first[first + apart < len(unit)]
        first = first[unit[first] == unit[first + apart]]
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

"""All agreement figures of a project from one array of judgments: whole, slices, aspects, weeks, pairs of labelers.

A million judgments have a few hundred distinct units (app.domain.figures.Patterns); a slice is represented by how often
each of them occurs in it. The pairs of a ranking come from one answer and depend on each other, so the bootstrap draws
them together, as one unit.
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
NOT_SAID = 9  # the labeler left out the aspect
PAIRS = 100  # maximum pairs of labelers with figures: those that share most comparisons
MOST_SLICES = 200  # maximum slices of a kind: the largest ones; smaller slices get no figures
PAIR_REPLICATES = 400  # fewer than for slices: intervals of pairs are wide, and a hundred pairs would take longer


class Tags(NamedTuple):
    """The slices of a comparison; '' means no slice of that kind."""

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
    ties: NDArray[np.bool_]  # whether a tie could be chosen, for each combination
    tag: NDArray[np.int64]  # (N,) index into tags
    comparison: NDArray[np.int64]  # (N,)
    ranking: NDArray[np.int64]  # (N,) the ranking that the comparison is a pair of; 0 if none
    labeler: NDArray[np.int64]  # (N,)
    week: NDArray[np.int64]  # (N,) a number that grows by one each week
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
    pairs: list[Pair]  # sorted by the number of shared comparisons, largest first
    pairs_total: int


class _Answers(NamedTuple):
    """N answers to U units; units, labelers and sides are numbered from 0."""

    unit: NDArray[np.int64]  # (N,)
    labeler: NDArray[np.int64]  # (N,)
    side: NDArray[np.int64]  # (N,) index into SIDES
    pattern: NDArray[np.int64]  # (U,)
    patterns: Patterns
    draw: NDArray[np.int64]  # (U,) the bootstrap draw, 0 to D - 1, of each unit: its own or its ranking's


class _Units(NamedTuple):
    """The comparisons as units; judgments are ordered by comparison, then labeler."""

    order: NDArray[np.int64]  # (N,) the judgments in this order
    starts: NDArray[np.int64]  # (U,) position of each unit's first judgment in this order
    answers: _Answers
    first: NDArray[np.int64]  # (D,) one unit of each draw
    kind: NDArray[np.int64]  # (D,) each draw's kind, an index into the patterns


def table(judgments: Judgments, replicates: int = REPLICATES) -> Table:
    """Return all agreement figures. The same judgments give the same intervals.

    Args:
        replicates: bootstrap replicates; pairs of labelers get fewer, and so do slices if there are very many.
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
    """Return the distinct rows (K, V) of small non-negative integers (N, V), and each row's index (N,) among them."""
    code = np.zeros(len(rows), dtype=np.int64)
    for column in rows.T:
        size = int(column.max(initial=0)) + 1
        if int(code.max(initial=0)) >= 2**62 // size:  # the code would overflow: renumber the codes that occur
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
    """Return `_Answers.draw`, `_Units.first` and `_Units.kind`, and add the kinds of rankings to the patterns."""
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
    """Return the `MOST_SLICES` most frequent values, sorted, and each value's number; -1 for '' and all others."""
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
    """Yield (part, its patterns, their frequencies) for every part that is not negative."""
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
    """Return `_parts` of the draws. part: (U,) the part of each unit, equal within a draw."""
    return list(_parts(part[units.first], units.kind, np.ones_like(units.kind), len(units.answers.patterns)))


def _by_part(
    units: _Units,
    part: NDArray[np.int64],
    kinds: Sequence[tuple[int, NDArray[np.int64], NDArray[np.int64]]],
    tied: Container[int],
    rng: np.random.Generator,
    replicates: int,
) -> dict[int, Figures]:
    """Return the figures of each part.

    Args:
        part: (U,) the part of each unit, -1 for none. kinds: `_kinds` of these parts. tied: the parts in which a tie
            can be chosen.
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
    """Return Conger's kappa of each part; arguments as for `_by_part`."""
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
    """Return the figures of an aspect. Rankings have no aspects."""
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
    """Return figures of the pairs of labelers that share most comparisons, and the number of pairs that share any."""
    labelers, labeler, unit = np.unique(judgments.labeler), units.answers.labeler, units.answers.unit
    value, size = judgments.preference[units.order] - PREFERENCES[0], len(PREFERENCES)
    first = np.arange(len(unit))
    codes, times = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    for apart in range(1, len(first)):
        # Pair each judgment with the one `apart` places later, if both are of the same unit. Soon few pairs are left.
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

"""The agreement figures of a set of units, each with its bootstrap interval."""

from collections.abc import Callable
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from app.domain import agreement
from app.domain.bootstrap import REPLICATES, Estimate, estimates
from app.domain.kappa import cohen_kappa, numbered
from app.domain.pooling import Floats, sums
from app.domain.proportions import wilson

Coefficients = Callable[[NDArray[np.int64]], NDArray[np.float64]]
SIDES = (-1, 0, 1)
# What comes in no kinds is drawn in so many groups, dealt at random: the standard error is then uncertain by 3.5%.
GROUPS = 400


class Figures(NamedTuple):
    """How far the answers to some comparisons agree. All but ordinal_alpha compare sides (A, tie, B)."""

    comparisons: int  # with an answer
    shared: int  # with two or more: only they say anything about agreement
    judgments: int
    percent: Estimate
    nominal_alpha: Estimate
    ordinal_alpha: Estimate  # of the preferences in all their steps
    fleiss_kappa: Estimate
    gwet_ac1: Estimate
    cohen_kappa: Estimate = Estimate(None)  # of many labelers Conger's; none where who answered is not looked at


NOTHING = Figures(0, 0, 0, *[Estimate(None)] * 5)


class PairFigures(NamedTuple):
    """How far two labelers agree on what both judged."""

    weighted_kappa: Estimate  # Cohen's of the preferences in all their steps, by the square of how many steps apart
    figures: Figures


class Patterns:
    """What is drawn anew in a replicate, by kinds: units of the same counts of answers, or groups of such units."""

    def __init__(self, counts: ArrayLike, values: ArrayLike) -> None:
        """
        Args:
            counts: (P, V) how many answers of each value a unit of pattern p has.
            values: (V,) the preferences, ascending; their signs are the sides.
        """
        found = np.asarray(counts, dtype=np.int64)
        answers = found.sum(axis=1)
        self.values = np.asarray(values, dtype=np.int64)
        self._sizes = np.stack([answers > 0, answers > 1, answers], axis=1).astype(np.int64)
        self._steps = agreement.terms(found)
        self._sides = agreement.terms(found @ sides_of(self.values))

    def __len__(self) -> int:
        return len(self._sizes)

    def add_groups(self, members: NDArray[np.int64]) -> None:
        """Kinds that are several units at once, which come after those there are: (G, M) patterns of their units, -1
        where a group has fewer."""
        for name in ("_sizes", "_steps", "_sides"):
            each = getattr(self, name)
            together = np.zeros((len(members), each.shape[1]), dtype=each.dtype)
            for member in members.T:
                together += np.where(member[:, None] < 0, 0, each[member])
            setattr(self, name, np.concatenate([each, together]))

    @property
    def shared(self) -> NDArray[np.int64]:
        """(P,) how many units of each kind have two answers or more."""
        return self._sizes[:, 1]

    @property
    def agreeing(self) -> Floats:
        """(P,) the share of a unit's pairs of answers that are on one side, added up over its kind's units."""
        return agreement.named(self._sides).agreeing

    def coefficients(self, patterns: NDArray[np.int64], categories: int) -> Coefficients:
        """Frequencies (R, K) of these patterns -> (5, R) coefficients in the order of `Figures`."""
        steps, sides = self._steps[patterns], self._sides[patterns]

        def of(times: NDArray[np.int64]) -> NDArray[np.float64]:
            by_side, by_step = agreement.summed(sides, times), agreement.summed(steps, times)
            return np.stack(
                [
                    agreement.percent_agreement(by_side),
                    agreement.krippendorff_alpha(by_side, SIDES, "nominal"),
                    agreement.krippendorff_alpha(by_step, self.values, "ordinal"),
                    agreement.fleiss_kappa(by_side),
                    agreement.gwet_ac1(by_side, categories),
                ]
            )

        return of

    def figures(
        self,
        patterns: NDArray[np.int64],
        frequencies: NDArray[np.int64],
        categories: int,
        rng: np.random.Generator,
        replicates: int = REPLICATES,
    ) -> Figures:
        """The figures of `frequencies` (K,) units of `patterns` (K,).

        Args:
            categories: how many sides there are to choose from: 3 with ties, else 2.
        """
        if not len(patterns):
            return NOTHING
        coefficients = self.coefficients(patterns, categories)
        telling = self._telling(patterns, frequencies)
        return self._figures(
            patterns, frequencies, estimates(frequencies, coefficients, rng, replicates, telling), replicates
        )

    def _telling(self, patterns: NDArray[np.int64], frequencies: NDArray[np.int64]) -> int:
        return int(frequencies[self.shared[patterns] > 0].sum())

    def _figures(
        self, patterns: NDArray[np.int64], frequencies: NDArray[np.int64], found: list[Estimate], replicates: int
    ) -> Figures:
        percent, *others = found
        if percent.value is not None and percent.low is None and replicates:
            # All alike: nothing to resample from, but a share has an interval of its own.
            telling = self._telling(patterns, frequencies)
            bounds = wilson(percent.value * telling, telling)
            percent = Estimate(percent.value, *bounds) if bounds else percent
        comparisons, shared, judgments = (int(n) for n in frequencies @ self._sizes[patterns])
        return Figures(comparisons, shared, judgments, percent, *others)


class PairPatterns(Patterns):
    """Units that two labelers share, by both answers: pattern v * V + w is value v of the first, w of the second."""

    def __init__(self, values: ArrayLike) -> None:
        each = np.eye(len(np.asarray(values)), dtype=np.int64)
        both = each[:, None, :] + each[None, :, :]
        super().__init__(both.reshape(-1, len(each)), values)

    def pair_figures(
        self,
        patterns: NDArray[np.int64],
        frequencies: NDArray[np.int64],
        categories: int,
        rng: np.random.Generator,
        replicates: int = REPLICATES,
    ) -> PairFigures:
        """As `figures`, with Cohen's kappas."""
        size = len(self.values)
        coefficients, to_side = self.coefficients(patterns, categories), sides_of(self.values)

        def of(times: NDArray[np.int64]) -> NDArray[np.float64]:
            cells = np.zeros((len(times), size * size))
            cells[:, patterns] = times
            confusion = cells.reshape(-1, size, size)
            by_side = to_side.T @ confusion @ to_side
            kappas = [cohen_kappa(by_side), cohen_kappa(confusion, "quadratic")]
            return np.concatenate([kappas, coefficients(times)])

        kappa, weighted, *found = estimates(frequencies, of, rng, replicates)
        return PairFigures(
            weighted, self._figures(patterns, frequencies, found, replicates)._replace(cohen_kappa=kappa)
        )


class Drawn(NamedTuple):
    """N units as Conger's kappa reads them; columns (N,).

    shared: two answers or more; agreeing: the share of their pairs that are equal; moves: see
    `app.domain.kappa.OwnHabits`; together: units of the same number are drawn together.
    """

    shared: NDArray[np.int64]
    agreeing: Floats
    moves: Floats
    together: NDArray[np.int64]

    def part(self, rows: NDArray[np.int64]) -> Self:
        return self._replace(**{name: column[rows] for name, column in self._asdict().items()})


def conger_kappa(drawn: Drawn, chance: float, rng: np.random.Generator, replicates: int = REPLICATES) -> Estimate:
    """kappa = (p_o - p_e) / (1 - p_e) with p_o as of Fleiss' kappa and p_e from each labeler's own shares.

    In a replicate p_e follows the units to first order: the shares of thousands of labelers are not computed anew.

    Args:
        chance: p_e, of `app.domain.kappa.own_habits`.
    """
    together, draws = numbered(drawn.together - drawn.together.min())
    n = min(draws, GROUPS)
    group = rng.permutation(draws)[together] % n
    terms = np.stack([sums(group, column, n) for column in (drawn.shared, drawn.agreeing, drawn.moves)], axis=1)

    def of(times: NDArray[np.int64]) -> NDArray[np.float64]:
        shared, agreeing, moved = (times @ terms).T
        by_chance = chance + moved
        observed = agreeing / np.where(shared == 0, np.nan, shared)
        return ((observed - by_chance) / np.where(by_chance < 1, 1 - by_chance, np.nan))[None]

    telling = int((terms[:, 0] > 0).sum())
    return estimates(np.ones(n, dtype=np.int64), of, rng, replicates, telling)[0]


def sides_of(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """(V, 3) 1 where value v is on side s of `SIDES`."""
    return (np.sign(values)[:, None] == np.array(SIDES)).astype(np.int64)

"""The agreement figures of a set of units, with bootstrap intervals."""

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
# Units that do not come in few kinds are drawn in this many random groups: the standard error is uncertain by 3.5%.
GROUPS = 400


class Figures(NamedTuple):
    """Agreement figures of a set of comparisons. All but ordinal_alpha compare sides (A, tie, B)."""

    comparisons: int  # comparisons with an answer
    shared: int  # comparisons with two or more answers: only these inform about agreement
    judgments: int
    percent: Estimate
    nominal_alpha: Estimate
    ordinal_alpha: Estimate  # from preferences with all steps of the scale
    fleiss_kappa: Estimate
    gwet_ac1: Estimate
    cohen_kappa: Estimate = Estimate(None)  # Conger's for several labelers; None if labelers are ignored


NOTHING = Figures(0, 0, 0, *[Estimate(None)] * 5)


class PairFigures(NamedTuple):
    """Agreement of two labelers on the comparisons that both judged."""

    weighted_kappa: Estimate  # Cohen's kappa of preferences with all steps, with quadratic weights
    figures: Figures


class Patterns:
    """Kinds of units for the bootstrap: units with the same counts of answers, or groups of units drawn together."""

    def __init__(self, counts: ArrayLike, values: ArrayLike) -> None:
        """Compute the terms of all patterns.

        Args:
            counts: (P, V) number of answers of each value in a unit of pattern p.
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
        """Append kinds that are groups of units. members: (G, M) patterns of each group's units, filled up with -1."""
        for name in ("_sizes", "_steps", "_sides"):
            each = getattr(self, name)
            together = np.zeros((len(members), each.shape[1]), dtype=each.dtype)
            for member in members.T:
                together += np.where(member[:, None] < 0, 0, each[member])
            setattr(self, name, np.concatenate([each, together]))

    @property
    def shared(self) -> NDArray[np.int64]:
        """(P,) number of units in each kind with two or more answers."""
        return self._sizes[:, 1]

    @property
    def agreeing(self) -> Floats:
        """(P,) share of a unit's pairs of answers that are on the same side, summed over the units of each kind."""
        return agreement.named(self._sides).agreeing

    def coefficients(self, patterns: NDArray[np.int64], categories: int) -> Coefficients:
        """Return a function of frequencies (R, K) of these patterns that gives the coefficients (5, R) of `Figures`."""
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
        """Return the figures of `frequencies` (K,) units of `patterns` (K,).

        Args:
            categories: number of sides to choose from: 3 with ties, else 2.
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
            # If all units have the same agreement, resampling gives no interval. A share still has Wilson's interval.
            telling = self._telling(patterns, frequencies)
            bounds = wilson(percent.value * telling, telling)
            percent = Estimate(percent.value, *bounds) if bounds else percent
        comparisons, shared, judgments = (int(n) for n in frequencies @ self._sizes[patterns])
        return Figures(comparisons, shared, judgments, percent, *others)


class PairPatterns(Patterns):
    """Patterns of units that two labelers share: v * V + w means value v of the first labeler, w of the second."""

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
        """Return the same as `figures`, with Cohen's kappas."""
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
    """N units as input of Conger's kappa; columns (N,).

    Attributes:
        shared: 1 for a unit with two or more answers, else 0.
        agreeing: share of its pairs of answers that are equal.
        moves: see `app.domain.kappa.OwnHabits`.
        together: units with the same number are drawn together.
    """

    shared: NDArray[np.int64]
    agreeing: Floats
    moves: Floats
    together: NDArray[np.int64]

    def part(self, rows: NDArray[np.int64]) -> Self:
        return self._replace(**{name: column[rows] for name, column in self._asdict().items()})


def conger_kappa(drawn: Drawn, chance: float, rng: np.random.Generator, replicates: int = REPLICATES) -> Estimate:
    """kappa = (p_o - p_e) / (1 - p_e) with the p_o of Fleiss' kappa and p_e from each labeler's own shares.

    In a replicate, p_e is a first-order approximation, so that the shares of thousands of labelers need not be
    recomputed.

    Args:
        chance: p_e from `app.domain.kappa.own_habits`.
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
    """Return (V, 3): 1 where value v is on side s of `SIDES`."""
    return (np.sign(values)[:, None] == np.array(SIDES)).astype(np.int64)

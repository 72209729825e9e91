"""The agreement figures of a set of units, each with its bootstrap interval."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from app.domain import agreement
from app.domain.bootstrap import REPLICATES, Estimate, estimates
from app.domain.kappa import cohen_kappa

Coefficients = Callable[[NDArray[np.int64]], NDArray[np.float64]]
SIDES = (-1, 0, 1)


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


NOTHING = Figures(0, 0, 0, *[Estimate(None)] * 5)


class PairFigures(NamedTuple):
    """How far two labelers agree on what both judged."""

    cohen_kappa: Estimate  # of sides
    weighted_kappa: Estimate  # of the preferences in all their steps, by the square of how many steps apart
    figures: Figures


class Patterns:
    """The distinct units, by their counts of answers."""

    def __init__(self, counts: ArrayLike, values: ArrayLike) -> None:
        """
        Args:
            counts: (P, V) how many answers of each value a unit of pattern p has.
            values: (V,) the preferences, ascending; their signs are the sides.
        """
        self.counts = np.asarray(counts, dtype=np.int64)
        self.values = np.asarray(values, dtype=np.int64)
        self.answers = self.counts.sum(axis=1)
        self._steps = agreement.terms(self.counts)
        self._sides = agreement.terms(self.counts @ sides_of(self.values))

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
        found = estimates(frequencies, self.coefficients(patterns, categories), rng, replicates)
        return Figures(*self._sizes(patterns, frequencies), *found)

    def _sizes(self, patterns: NDArray[np.int64], frequencies: NDArray[np.int64]) -> tuple[int, int, int]:
        answers = self.answers[patterns]
        return (
            int(frequencies[answers > 0].sum()),
            int(frequencies[answers > 1].sum()),
            int((answers * frequencies).sum()),
        )


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
        return PairFigures(kappa, weighted, Figures(*self._sizes(patterns, frequencies), *found))


def sides_of(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """(V, 3) 1 where value v is on side s of `SIDES`."""
    return (np.sign(values)[:, None] == np.array(SIDES)).astype(np.int64)

"""UKPConvArg1's votes, in total or by topic, and the methods that ours are compared with."""

import gzip
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FILE = Path(__file__).parent.parent / "fixtures" / "convincing_arguments_votes.csv.gz"
SIDES = {"A": -1, "=": 0, "B": 1, "?": 2}


class Sample(NamedTuple):
    """Votes on C pairs by L workers. items: (C, 2). gold: (C,) a side, or 2 for a pair without one."""

    comparison: NDArray[np.int64]
    labeler: NDArray[np.int64]
    side: NDArray[np.int64]
    items: NDArray[np.int64]
    gold: NDArray[np.int64]

    @property
    def labelers(self) -> int:
        return int(self.labeler.max()) + 1

    @property
    def counts(self) -> NDArray[np.int64]:
        """Votes (C, 3) for A, tie and B."""
        return np.bincount(self.comparison * 3 + self.side + 1, minlength=3 * len(self.gold)).reshape(-1, 3)

    def majority(self, *, shared_is_tie: bool = False) -> float:
        """Return the accuracy of counting votes; a shared first place is a guess among its outcomes, or a tie."""
        if not shared_is_tie:
            return self.accuracy(self.counts.astype(float))
        top = self.counts == self.counts.max(axis=1, keepdims=True)
        return self.accuracy(np.where(top.sum(axis=1, keepdims=True) > 1, [[0.0, 1.0, 0.0]], top))

    def accuracy(self, scores: NDArray[np.float64]) -> float:
        """Return the share of gold labels with the highest score; shared highest scores count as a random guess."""
        return float(self.hits(scores).mean())

    def hits(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return for each pair with a gold label the probability of a hit."""
        given = self.gold != 2
        rows = scores[given].round(9)
        top = rows == rows.max(axis=1, keepdims=True)
        return top[np.arange(len(rows)), self.gold[given] + 1] / top.sum(axis=1)

    def topic(self, number: int) -> "Sample":
        """Return the pairs of one topic, with new numbers for workers and arguments."""
        pairs = np.flatnonzero(_topics() == number)
        kept = np.isin(self.comparison, pairs)
        _, labeler = np.unique(self.labeler[kept], return_inverse=True)
        _, items = np.unique(self.items[pairs], return_inverse=True)
        comparison = np.searchsorted(pairs, self.comparison[kept])
        return Sample(comparison, labeler, self.side[kept], items.reshape(-1, 2), self.gold[pairs])


@cache
def _rows() -> list[list[str]]:
    lines = gzip.decompress(FILE.read_bytes()).decode().splitlines()[1:]
    return [line.split(",") for line in lines]


@cache
def _topics() -> NDArray[np.int64]:
    return np.array([int(row[0]) for row in _rows()])


@cache
def everything() -> Sample:
    votes = [(i, int(vote[:-1]), SIDES[vote[-1]]) for i, row in enumerate(_rows()) for vote in row[4].split()]
    comparison, labeler, side = np.array(votes).T
    items = np.array([[int(row[2]), int(row[3])] for row in _rows()])
    return Sample(comparison, labeler, side, items, np.array([SIDES[row[1]] for row in _rows()]))


def topics() -> list[Sample]:
    return [everything().topic(number) for number in range(int(_topics().max()) + 1)]


def plain_dawid_skene(sample: Sample, iterations: int = 100) -> NDArray[np.float64]:
    """Return posteriors (C, 3) as in the paper of 1979: free confusion matrices and outcomes, maximum likelihood."""
    posterior = sample.counts / sample.counts.sum(axis=1, keepdims=True)
    cell = sample.labeler * 3 + sample.side + 1
    n, n_labelers = len(sample.gold), sample.labelers
    for _ in range(iterations):
        said = np.stack(
            [np.bincount(cell, posterior[sample.comparison, z], n_labelers * 3).reshape(-1, 3) for z in range(3)], 1
        )
        table = np.log(np.maximum(said / np.maximum(said.sum(axis=2, keepdims=True), 1e-300), 1e-10))
        logs = np.stack(
            [np.bincount(sample.comparison, table[:, z].reshape(-1)[cell], n) for z in range(3)], axis=1
        ) + np.log(np.maximum(posterior.mean(axis=0), 1e-300))
        likely = np.exp(logs - logs.max(axis=1, keepdims=True))
        posterior = likely / likely.sum(axis=1, keepdims=True)
    return posterior


def outcomes(p_b: NDArray[np.float64], p_tie: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return probabilities (C, 3) of A, tie and B."""
    return np.stack([1 - p_b - p_tie / 2, p_tie, p_b - p_tie / 2], axis=1)

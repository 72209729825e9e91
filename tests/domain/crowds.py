"""Simulated crowds with a known truth: differences between labelers, numbers of answers, difficulty of items."""

from typing import NamedTuple

import numpy as np

from tests.domain.votes import Sample

COMPARISONS = 600


class Crowd(NamedTuple):
    """Each labeler gives about `each` answers, and every comparison gets `overlap` answers.

    shares: shares of A, tie and B among the true outcomes. skill: lowest and highest probability to give the true one.
    spam: share who answer at random. adversaries: share who are right one time in four. hard: share of comparisons on
    which everybody guesses. doubt: probability that an error is a tie. skewed: a few labelers give most answers.
    """

    each: int
    overlap: int
    shares: tuple[float, float, float] = (1 / 3, 1 / 3, 1 / 3)
    skill: tuple[float, float] = (0.6, 0.9)
    spam: float = 0.0
    adversaries: float = 0.0
    hard: float = 0.0
    doubt: float = 0.0
    skewed: bool = False

    def sample(self, seed: int) -> Sample:
        rng = np.random.default_rng(seed)
        labelers = max(self.overlap + 1, round(COMPARISONS * self.overlap / self.each))
        often = 1 / np.arange(1, labelers + 1) if self.skewed else np.ones(labelers)
        # Draw without replacement in proportion to `often`: the smallest exponentials with these rates.
        chosen = np.argsort(rng.exponential(size=(COMPARISONS, labelers)) / often, axis=1)[:, : self.overlap]
        comparison, labeler = np.repeat(np.arange(COMPARISONS), self.overlap), chosen.ravel()
        truth = rng.choice([-1, 0, 1], COMPARISONS, p=self.shares)
        kind, right = rng.random(labelers), rng.uniform(*self.skill, labelers)
        right[(kind >= self.spam) & (kind < self.spam + self.adversaries)] = 0.25

        is_true, n = truth[comparison], len(comparison)
        coin = rng.random(n) < 0.5
        if self.shares[1]:
            wrong = np.where(is_true == 0, np.where(coin, 1, -1), np.where(coin, 0, -is_true))
            guess = rng.integers(-1, 2, n)
        else:
            wrong = np.where(rng.random(n) < self.doubt, 0, -is_true)
            guess = np.where(coin, 1, -1)
        side = np.where(rng.random(n) < right[labeler], is_true, wrong)
        guesses = (kind < self.spam)[labeler] | (rng.random(COMPARISONS) < self.hard)[comparison]
        numbers = np.unique(labeler, return_inverse=True)[1]
        return Sample(comparison, numbers, np.where(guesses, guess, side), np.empty((0, 2), np.int64), truth)


NO_TIES = (0.5, 0.0, 0.5)
CROWDS = {
    "2 each": Crowd(2, 3),
    "2 each, nine on each": Crowd(2, 9, shares=NO_TIES),
    "10 each": Crowd(10, 5),
    "50 each": Crowd(50, 5),
    "all alike": Crowd(50, 9, skill=(0.6, 0.6)),
    "all alike, no ties": Crowd(10, 9, shares=NO_TIES, skill=(0.75, 0.75)),
    "spammers, few answers": Crowd(5, 3, spam=0.4),
    "spammers": Crowd(50, 9, spam=0.4),
    "adversaries, few answers": Crowd(5, 5, shares=NO_TIES, adversaries=0.3),
    "adversaries": Crowd(50, 9, shares=NO_TIES, adversaries=0.3),
    "hard items": Crowd(10, 5, hard=0.3),
    "a few give most": Crowd(10, 3, skewed=True),
    "mostly B": Crowd(10, 5, shares=(0.1, 0.0, 0.9)),
    "rarely ties": Crowd(10, 3, shares=(0.45, 0.1, 0.45)),
    "mostly ties": Crowd(50, 3, shares=(0.15, 0.7, 0.15)),
    "ties for doubt": Crowd(10, 5, shares=NO_TIES, doubt=0.5),
    "rarely ties for doubt": Crowd(50, 3, shares=NO_TIES, doubt=0.1),
}

"""Planted judgments between policies."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from app.domain.leaderboard import Matches

BASE, ONE, TWO, THREE = 10, 20, 30, 40
Said = tuple[int, int, int, int]  # policy a, policy b, outcome, how often


def matches(said: Iterable[Said], **columns: NDArray[np.generic]) -> Matches:
    """Return judgments without covariates. Each has a different prompt; eight labelers take turns."""
    rows = np.array([row[:3] for row in said for _ in range(row[3])], dtype=np.int64).reshape(-1, 3)
    n = len(rows)
    given = {
        "position": np.zeros(n),
        "style": np.zeros((n, 4)),
        "prompt": np.arange(n),
        "labeler": np.arange(n) % 8,
    }
    return Matches(*rows.T, **(given | columns))  # type: ignore[arg-type]


def both_orders(found: Matches) -> Matches:
    """Return the judgments, and each of them again with a and b exchanged."""
    turned = found._replace(a=found.b, b=found.a, outcome=-found.outcome, position=-found.position, style=-found.style)
    return Matches(*(np.concatenate(columns) for columns in zip(found, turned, strict=True)))

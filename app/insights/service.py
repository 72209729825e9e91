"""How far a project's labelers agree, as a whole and by slice."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from app.domain import slices
from app.domain.agreement import krippendorff_alpha, percent_agreement
from app.insights import queries
from app.insights.queries import PREFERENCES

SIDES = (-1, 0, 1)
SLICES = ("domain", "difficulty", "split", "purpose")


@dataclass(frozen=True)
class Agreement:
    """Coefficients over some comparisons; none where undefined (app.domain.agreement).

    nominal_alpha and percent compare sides (A, tie, B); ordinal_alpha the seven preferences from -3 to 3.
    """

    comparisons: int  # with at least one judgment
    judgments: int
    nominal_alpha: float | None
    ordinal_alpha: float | None
    percent: float | None


@dataclass(frozen=True)
class ProjectAgreement:
    whole: Agreement
    by_slice: dict[tuple[str, str], Agreement]  # by (slice's name, value)
    preferences: dict[int, int]  # judgments by preference


def agreement(session: Session, project_id: int) -> ProjectAgreement:
    """Agreement over the live judgments of all comparisons that are not withdrawn."""
    units = queries.units(session, project_id)
    counts = np.array([unit.counts for unit in units], dtype=np.int64).reshape(-1, len(PREFERENCES))
    masks = slices.masks({name: [getattr(unit, name) for unit in units] for name in SLICES})
    totals = counts.sum(axis=0)
    return ProjectAgreement(
        whole=of_counts(counts),
        by_slice={key: of_counts(counts[mask]) for key, mask in masks.items()},
        preferences={preference: int(n) for preference, n in zip(PREFERENCES, totals, strict=True)},
    )


def of_counts(counts: NDArray[np.int64]) -> Agreement:
    """Agreement from (comparisons, 7) counts of the preferences -3 to 3."""
    sides = np.stack([_sum(counts, [p for p in PREFERENCES if np.sign(p) == side]) for side in SIDES], axis=1)
    return Agreement(
        comparisons=len(counts),
        judgments=int(counts.sum()),
        nominal_alpha=krippendorff_alpha(sides, SIDES, "nominal"),
        ordinal_alpha=krippendorff_alpha(counts, PREFERENCES, "ordinal"),
        percent=percent_agreement(sides),
    )


def _sum(counts: NDArray[np.int64], preferences: Sequence[int]) -> NDArray[np.int64]:
    return counts[:, [PREFERENCES.index(preference) for preference in preferences]].sum(axis=1)

"""Slices: the named parts of the data that every measure is also shown for, such as `domain=safety`."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

NAMES = ("domain", "difficulty", "safety_category", "split")


def of_prompt(domain: str, difficulty: str, safety_category: str | None, split: str) -> dict[str, str]:
    """A prompt's slice tags, without those it does not have."""
    tags = dict(zip(NAMES, (domain, difficulty, safety_category, split), strict=True))
    return {name: value for name, value in tags.items() if value}


def masks(columns: Mapping[str, Sequence[str]]) -> dict[tuple[str, str], NDArray[np.bool_]]:
    """For every name and each of its values, which rows have it; rows where the value is empty are in no slice.

    Args:
        columns: by slice name, the value of each row (all of one length).

    Returns:
        {(name, value): (rows,) bool}, names in the order given, values sorted.
    """
    found = {}
    for name, column in columns.items():
        values = np.asarray(column, dtype=object)
        for value in sorted({value for value in column if value}):
            found[name, value] = values == value
    return found

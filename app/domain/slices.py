"""Slices: the named parts of the data that every measure is also shown for, such as `domain=safety`."""

# Values of a tag that a page lists to choose from: a data set may have another one on each row.
MOST_LISTED = 500
NAMES = ("domain", "difficulty", "safety_category", "split")


def of_prompt(domain: str, difficulty: str, safety_category: str | None, split: str) -> dict[str, str]:
    """A prompt's slice tags, without those it does not have."""
    tags = dict(zip(NAMES, (domain, difficulty, safety_category, split), strict=True))
    return {name: value for name, value in tags.items() if value}

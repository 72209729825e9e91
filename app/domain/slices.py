"""Slices: named parts of the data for which every metric is also shown, such as `domain=safety`."""

# Maximum values of a tag that a page lists to choose from: a data set may have a different value on each row.
MOST_LISTED = 500
NAMES = ("domain", "difficulty", "safety_category", "split")


def of_prompt(domain: str, difficulty: str, safety_category: str | None, split: str) -> dict[str, str]:
    """Return a prompt's slice tags, without empty ones."""
    tags = dict(zip(NAMES, (domain, difficulty, safety_category, split), strict=True))
    return {name: value for name, value in tags.items() if value}

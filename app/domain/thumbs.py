"""Judgments of single responses by thumbs."""


def liked(up: int, down: int) -> bool | None:
    """Return whether most thumbs for a response are up; None if up and down are equal."""
    return None if up == down else up > down

"""What people say of one response alone."""


def liked(up: int, down: int) -> bool | None:
    """Whether a response is liked, by most of its thumbs; none where they are even: nobody knows then."""
    return None if up == down else up > down

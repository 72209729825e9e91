"""The cost of an endpoint's answers."""

from app.models import Judge


def cost(judge: Judge, prompt_tokens: int, completion_tokens: int) -> float | None:
    """Return the cost by the judge's prices per million tokens; None if no price is set."""
    if judge.prompt_price is None and judge.completion_price is None:
        return None
    return (prompt_tokens * (judge.prompt_price or 0) + completion_tokens * (judge.completion_price or 0)) / 1e6

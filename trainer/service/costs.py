"""What answers of an endpoint cost."""

from app.models import Judge


def cost(judge: Judge, prompt_tokens: int, completion_tokens: int) -> float | None:
    """By the operator's prices per million tokens; none where they set none."""
    if judge.prompt_price is None and judge.completion_price is None:
        return None
    return (prompt_tokens * (judge.prompt_price or 0) + completion_tokens * (judge.completion_price or 0)) / 1e6

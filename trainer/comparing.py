"""A policy beside the one before it: both answered the same prompts from the same seeds, one reward model scored both.

| metric | what it is |
|---|---|
| `eval_before/` with `scores`, `length`, `finished`, `repetition`, `refusals` | as in `trainer.evaluation`, before |
| `eval_difference/scores` | mean score of the new policy less that of the one before |
| `eval_difference/scores_low`, `_high` | its 95% interval, prompts as clusters; none for fewer than five prompts |
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

from torch import Tensor

from app.domain.intervals import mean_interval
from trainer.evaluation import figures_of, slice_members
from trainer.rollout import Response


def compare(
    responses: Sequence[Response], scores: Tensor, before: Sequence[Response], before_scores: Tensor
) -> dict[str, dict[str, float]]:
    """The table above by slice, `""` for all. Scores (N,) and (M,), of as many responses to each prompt."""
    by_prompt: dict[int, list[float]] = defaultdict(list)
    for sign, said, scored in ((1, responses, scores), (-1, before, before_scores)):
        count = Counter(response.row.id for response in said)
        for response, score in zip(said, scored.tolist(), strict=True):
            by_prompt[response.row.id].append(sign * score / count[response.row.id])
    difference = {prompt: sum(parts) for prompt, parts in by_prompt.items()}  # of the prompt's mean scores
    columns = figures_of(before, before_scores)
    compared = {}
    for name, members in slice_members(response.row for response in before).items():
        values = {f"eval_before/{figure}": float(column[members].double().mean()) for figure, column in columns.items()}
        prompts = sorted({before[i].row.id for i in members})
        of_prompts = [difference[prompt] for prompt in prompts]
        values["eval_difference/scores"] = sum(of_prompts) / len(of_prompts)
        if interval := mean_interval(of_prompts):
            values |= {"eval_difference/scores_low": interval.low, "eval_difference/scores_high": interval.high}
        compared[name] = values
    return compared

"""A policy beside the one before it: both answered the same prompts from the same seeds, one reward model scored both.

FIGURE stands for `scores` and everything else that `trainer.evaluation.figures.figures_of` measures.

| metric | what it is |
|---|---|
| `eval_before/FIGURE` | as in `trainer.evaluation.figures`, of the policy before |
| `eval_difference/FIGURE` | mean of the new policy less that of the one before |
| `eval_difference/FIGURE_low`, `_high` | its 95% interval, prompts as clusters; none for fewer than five prompts |
| `eval_prompts` | number of prompts |
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

from torch import Tensor

from app.domain.intervals import mean_interval
from trainer.evaluation.figures import figures_of, slice_members
from trainer.sampling.responses import Response


def compare(
    responses: Sequence[Response], scores: Tensor, before: Sequence[Response], before_scores: Tensor
) -> dict[str, dict[str, float]]:
    """The table above by slice, `""` for all. Scores (N,) and (M,), of as many responses to each prompt."""
    new, old = figures_of(responses, scores), figures_of(before, before_scores)
    differences = {figure: _by_prompt(responses, new[figure], before, old[figure]) for figure in old}
    compared = {}
    for name, members in slice_members(response.row for response in before).items():
        prompts = sorted({before[i].row.id for i in members})
        values = {"eval_prompts": float(len(prompts))}
        for figure, column in old.items():
            values[f"eval_before/{figure}"] = float(column[members].double().mean())
            of_prompts = [differences[figure][prompt] for prompt in prompts]
            difference = f"eval_difference/{figure}"
            values[difference] = sum(of_prompts) / len(of_prompts)
            if interval := mean_interval(of_prompts):
                values |= {f"{difference}_low": interval.low, f"{difference}_high": interval.high}
        compared[name] = values
    return compared


def _by_prompt(responses: Sequence[Response], new: Tensor, before: Sequence[Response], old: Tensor) -> dict[int, float]:
    """Difference of the prompts' means, new less old, of figures (N,) and (M,)."""
    parts: dict[int, list[float]] = defaultdict(list)
    for sign, said, column in ((1, responses, new), (-1, before, old)):
        count = Counter(response.row.id for response in said)
        for response, value in zip(said, column.tolist(), strict=True):
            parts[response.row.id].append(sign * value / count[response.row.id])
    return {prompt: sum(values) for prompt, values in parts.items()}

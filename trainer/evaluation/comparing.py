"""Compare a policy with the previous policy on the same prompts and seeds, with the same reward models.

FIGURE stands for each figure of `trainer.evaluation.figures.figures_of`, such as `scores`.

| metric | meaning |
|---|---|
| `eval_before/FIGURE` | the figure for the previous policy, see `trainer.evaluation.figures` |
| `eval_difference/FIGURE` | mean for the new policy minus mean for the previous policy |
| `eval_difference/FIGURE_low`, `_high` | its 95% interval, clustered by prompt; missing for fewer than five prompts |
| `eval_prompts` | number of prompts |
| `eval_wins` | share of pairs (new response, previous response) in which the new one scores higher; a tie is half |
| `eval_wins_low`, `_high` | its 95% interval, also clustered by prompt |

Only the comparison has the figure `length_at_reward`: the length, adjusted for the reward. For the previous policy it
is the mean length. The difference is the difference in length minus the part that the difference in reward explains,
by the pooled slope of length on reward within both policies.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from app.domain.intervals import mean_interval
from trainer.evaluation.figures import Looked, figures_of, slice_members
from trainer.sampling.responses import Response


def compare(
    responses: Sequence[Response],
    scores: Tensor,
    before: Sequence[Response],
    before_scores: Tensor,
    looked: Looked | None = None,
    before_looked: Looked | None = None,
) -> dict[str, dict[str, float]]:
    """Return the metrics of the table above by slice, `""` for all responses.

    Args:
        scores: (N,) of the new policy's responses.
        before_scores: (M,) of the previous policy's responses.
    """
    new, old = figures_of(responses, scores, looked), figures_of(before, before_scores, before_looked)
    differences = {figure: _by_prompt(responses, new[figure], before, old[figure]) for figure in old}
    wins = _wins(responses, scores, before, before_scores)
    compared = {}
    for name, members in slice_members(response.row for response in before).items():
        prompts = sorted({before[i].row.id for i in members})
        values = {"eval_prompts": float(len(prompts))}
        for figure, column in old.items():
            values[f"eval_before/{figure}"] = float(column[members].double().mean())
            values |= _interval(f"eval_difference/{figure}", [differences[figure][prompt] for prompt in prompts])
        values |= _interval("eval_wins", [wins[prompt] for prompt in prompts])
        compared[name] = values
    slope = _slope(responses, new, before, old)
    adjusted = [differences["length"][prompt] - slope * differences["scores"][prompt] for prompt in sorted(wins)]
    found = _interval("eval_difference/length_at_reward", adjusted)
    length = compared[""]["eval_before/length"]
    found["eval_before/length_at_reward"] = length
    found["eval_length_at_reward"] = length + found["eval_difference/length_at_reward"]
    compared[""] |= found
    return compared


def _interval(name: str, of_prompts: Sequence[float]) -> dict[str, float]:
    """Return a mean over prompts as a metric, with its interval if there are enough prompts."""
    values = {name: sum(of_prompts) / len(of_prompts)}
    if interval := mean_interval(of_prompts):
        values |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
    return values


def _by_prompt(responses: Sequence[Response], new: Tensor, before: Sequence[Response], old: Tensor) -> dict[int, float]:
    """Return each prompt's mean of a figure (N,) for the new policy, minus its mean (M,) for the previous policy."""
    parts: dict[int, list[float]] = defaultdict(list)
    for sign, said, column in ((1, responses, new), (-1, before, old)):
        count = Counter(response.row.id for response in said)
        for response, value in zip(said, column.tolist(), strict=True):
            parts[response.row.id].append(sign * value / count[response.row.id])
    return {prompt: sum(values) for prompt, values in parts.items()}


def _wins(responses: Sequence[Response], new: Tensor, before: Sequence[Response], old: Tensor) -> dict[int, float]:
    """Return each prompt's share of pairs in which the new policy's score (N,) exceeds the previous policy's (M,)."""
    mine, theirs = _places(responses), _places(before)
    return {
        prompt: float(((new[mine[prompt]][:, None] - old[places][None]).sign() + 1).double().mean() / 2)
        for prompt, places in theirs.items()
    }


def _slope(
    responses: Sequence[Response], new: dict[str, Tensor], before: Sequence[Response], old: dict[str, Tensor]
) -> float:
    """Return the slope of length on reward, in tokens per unit, among one policy's answers to one prompt, pooled.

    It is 0 if the rewards do not differ.
    """
    products = squares = 0.0
    for said, figures in ((responses, new), (before, old)):
        for places in _places(said).values():
            length, score = (figures[name][places].double() for name in ("length", "scores"))
            score = score - score.mean()
            products += float((score * (length - length.mean())).sum())
            squares += float(score.square().sum())
    return products / squares if squares > 1e-12 else 0.0


def _places(responses: Sequence[Response]) -> dict[int, Tensor]:
    """Return the indices of each prompt's responses."""
    places: dict[int, list[int]] = defaultdict(list)
    for i, response in enumerate(responses):
        places[response.row.id].append(i)
    return {prompt: torch.tensor(own) for prompt, own in places.items()}

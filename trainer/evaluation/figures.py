"""What is measured of a policy's responses, overall and by slice.

| metric | of one response | reported |
|---|---|---|
| `eval_objective/scores` | the mean of all reward heads, no penalty | mean |
| `eval_objective/scores_std` | | standard deviation over responses |
| `eval_objective/kl` | k1 summed over the response: KL to the reference, nats a sequence | mean |
| `eval_objective/kl_per_token` | | KL of all responses / tokens of all responses |
| `eval_objective/kl_k3` | k3 summed over the response: the same KL of less noise, never negative | mean |
| `eval_objective/best_of_n_scores` | the best score of a prompt's n responses | mean over prompts |
| `eval_objective/best_of_n_kl` | that one's k1 summed + ln n - (n - 1) / n: KL to the reference | mean over prompts |
| `eval_length` | tokens, the end-of-turn token included | mean |
| `eval_finished` | ended by itself, not cut by length | share |
| `eval_repetition` | share of word trigrams that stand earlier in the same response | mean |
| `eval_refusals`, `eval_hedging`, `eval_flattery` | has a phrase of that kind: an estimate, English only | share |
| `eval_formatting` | marks of Markdown for each hundred words | mean |
| `eval_empty` | has neither letters nor digits | share |
| `eval_copied` | share of its runs of five words that stand in the prompt | mean |
| `eval_other_script` | share of its letters in scripts of which the prompt has none | mean |
| `eval_variety` | share of different word pairs among all responses to its prompt | mean |
| `eval_samples` | | number of responses |

Log-probs are those of the distribution sampled from: logits divided by the sampling temperature. Evaluating the
reference itself with n samples a prompt gives best-of-n's point on the curve of reward over KL. `app.domain.yardstick`
measures that curve beside a policy, from responses of the reference that are stored.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from app.domain import texts
from app.domain.yardstick import best_of_n_kl
from app.rows import PromptRow
from trainer.algorithms.bradley_terry import ensemble_score
from trainer.algorithms.kl import k1, k3
from trainer.batching.chat import ChatEncoder, TokenSequence
from trainer.batching.data import slice_names
from trainer.batching.packing import pack, token_parts
from trainer.models.policy import can_share, completion_outputs, trunk_of
from trainer.models.sizes import forward_tokens
from trainer.processes import device
from trainer.reporting import TrainingDiverged
from trainer.reward.model import load_reward_model
from trainer.reward.network import RewardModel
from trainer.sampling.generation import Tick, no_tick
from trainer.sampling.responses import Response

log = logging.getLogger(__name__)

Scorer = Callable[[Sequence[Any]], Tensor]
"""Scores (N,) of responses: a reward model, or any function of what was said."""

TOKENS_A_ROW = 32  # rows are bounded too, as if each had at least so many tokens

# ---- scores ----------------------------------------------------------------------------------------------------------


def reward_models_scorer(
    folders: Sequence[str | Path],
    max_length: int,
    combine: Literal["mean", "min", "mean_minus_variance"] = "mean",
    variance_weight: float = 0.1,
    tick: Tick = no_tick,
    dtype: torch.dtype | None = None,
) -> Scorer:
    """Scores by the heads of all reward models, combined into one (see `ensemble_score`).

    A response is read as training data was: the text as people saw it, and the end of turn. One cut by length is closed
    too; how it ended is not the reward model's business (see `missing_eos_penalty`).

    Args:
        dtype: of the models; None: as `working_dtype` measures.

    Raises:
        ModelUnavailable: a folder holds no reward model.
    """
    heads = reward_heads(folders, max_length, tick, dtype)

    def score(responses: Sequence[Response]) -> Tensor:
        return ensemble_score(heads(responses), combine, variance_weight)

    return score


def require_numbers(responses: Sequence["Said"], scores: Tensor) -> None:
    """Raises TrainingDiverged if a score (N,) is NaN or infinite, naming the first such response's prompt."""
    if broken := [responses[i] for i in (~scores.isfinite()).nonzero().flatten().tolist()]:
        raise TrainingDiverged(
            f"{len(broken)} of {len(responses)} responses got a score that is not a number, the first one to "
            f"prompt {broken[0].row.id}.",
            "Look at the reward models; in bfloat16, try float32.",
        )


class Said(Protocol):
    """A response, wherever it was sampled."""

    @property
    def row(self) -> PromptRow: ...
    @property
    def text(self) -> str: ...


Heads = Callable[[Sequence[Said]], Tensor]
"""Rewards (N, H) of responses, a column for each scoring head of all reward models."""


def reward_heads(
    folders: Sequence[str | Path], max_length: int, tick: Tick = no_tick, dtype: torch.dtype | None = None
) -> Heads:
    """What each head of the reward models says, of responses read as `reward_models_scorer` does.

    Raises:
        ModelUnavailable: a folder holds no reward model.
    """
    members = [_member(folder, max_length, tick, dtype) for folder in folders]
    return lambda responses: torch.cat([member(responses) for member in members], -1)


def _member(folder: str | Path, max_length: int, tick: Tick, dtype: torch.dtype | None) -> Heads:
    """Those of one reward model."""
    model, tokenizer = load_reward_model(folder, dtype)
    encoder = ChatEncoder(tokenizer, max_length)
    longest = encoder.max_length
    heads, tokens = scoring_heads(model), forward_tokens(trunk_of(model.classifier))

    @torch.no_grad()
    def rewards(responses: Sequence[Said]) -> Tensor:
        sequences, cut = [], 0
        for response in responses:
            completion = encoder.completion(response.text)
            cut += len(completion) >= longest
            completion = completion[-(longest - 1) :]
            room = longest - len(completion)
            prompt, _ = encoder.prompt_within(response.row.messages, room)
            sequences.append(TokenSequence(prompt, completion))
        if cut:
            log.warning(
                "%d of %d responses are longer than the %d tokens that are read: scored by their ends.",
                *(cut, len(responses), longest),
            )
        found = torch.empty(len(sequences), len(heads))
        for part in forward_batches(sequences, model.share, tokens):
            tick()
            packed = pack([sequences[i] for i in part], tokenizer.pad_token_id, model.share)
            found[part] = model(packed.to(device()))[:, heads].float().cpu()
        return found

    return rewards


def scoring_heads(model: RewardModel) -> list[int]:
    """The heads that make the score; aspects only where there is nothing else. A foreign classifier's label is one."""
    return model.score_heads or list(range(len(model.heads)))


# ---- passes without gradients ----------------------------------------------------------------------------------------


@torch.no_grad()
def response_logps(
    model: Any,
    sequences: Sequence[TokenSequence],
    temperature: float,
    pad_id: int,
    tick: Tick = no_tick,
) -> list[Tensor]:
    """Log-probs of each completion's tokens, one tensor (its length,) a sequence, on the CPU."""
    logps: list[Tensor] = [torch.empty(0)] * len(sequences)
    share = can_share(trunk_of(model))
    for part in forward_batches(sequences, share, forward_tokens(trunk_of(model))):
        tick()
        packed = pack([sequences[i] for i in part], pad_id, share).to(device())
        flat = completion_outputs(model, packed, temperature).logps.cpu()
        for i, row in zip(part, flat.split([len(sequences[i].completion) for i in part]), strict=True):
            logps[i] = row
    return logps


def prompt_groups(
    sequences: Sequence[TokenSequence], indices: Iterable[int], share: bool, tokens: int
) -> tuple[list[list[int]], list[int]]:
    """Indices grouped by prompt, at most `tokens` tokens a group, and each group's tokens; without `share` each alone.

    Groups are what is forwarded together or apart: their members share the prompt in a row
    (`trainer.batching.packing`).
    """
    by_prompt: dict[Any, list[int]] = defaultdict(list)
    for i in indices:
        by_prompt[tuple(sequences[i].prompt) if share else i].append(i)
    groups: list[list[int]] = []
    lengths: list[int] = []
    for members in by_prompt.values():
        length = tokens + 1  # opens a group for the first
        for i in members:
            added = len(sequences[i].completion)
            if length + added > tokens:
                groups.append([])
                lengths.append(0)
                length = len(sequences[i].prompt)
            length += added
            groups[-1].append(i)
            lengths[-1] = length
    return groups, lengths


def forward_batches(sequences: Sequence[TokenSequence], share: bool, tokens: int) -> Iterator[list[int]]:
    """Indices of sequences to forward together when no gradients are wanted; those of one prompt are neighbours.

    Args:
        tokens: most of them at once (`trainer.models.sizes.forward_tokens`).
    """
    groups, lengths = prompt_groups(sequences, range(len(sequences)), share, tokens)
    for part in token_parts(range(len(groups)), lengths, tokens // TOKENS_A_ROW, tokens):
        yield [i for group in part for i in groups[group]]


# ---- measures --------------------------------------------------------------------------------------------------------


def slice_members(rows: Iterable[PromptRow]) -> dict[str, list[int]]:
    """Indices of the rows of each slice, `""` for all of them."""
    members: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        for name in ["", *slice_names(row.slices)]:
            members[name].append(i)
    return dict(members)


def figures_of(responses: Sequence[Response], scores: Tensor) -> dict[str, Tensor]:
    """What is known of each response without its log-probs, by name, each (N,)."""
    by_prompt: dict[int, list[str]] = defaultdict(list)
    for response in responses:
        by_prompt[response.row.id].append(response.text)
    variety = {prompt: texts.variety(said) for prompt, said in by_prompt.items()}
    asked = [texts.asked_in(response.row.messages) for response in responses]
    columns: dict[str, list[Any]] = {
        "length": [len(r.sample.tokens) for r in responses],
        "finished": [r.sample.finished for r in responses],
        **{
            name: [figure(q, r.text) for q, r in zip(asked, responses, strict=True)]
            for name, figure in texts.FIGURES.items()
        },
        "variety": [variety[r.row.id] for r in responses],
    }
    return {"scores": scores} | {name: torch.tensor([float(v) for v in values]) for name, values in columns.items()}


def measure(
    responses: Sequence[Response], scores: Tensor, logps: Sequence[Tensor], reference_logps: Sequence[Tensor]
) -> dict[str, dict[str, float]]:
    """The table above by slice, `""` for all. Scores (N,); a tensor of token log-probs a response, twice."""
    pairs = list(zip(logps, reference_logps, strict=True))
    kl = torch.stack([k1(mine, base).sum() for mine, base in pairs])
    figures = figures_of(responses, scores)
    per_response = {
        "eval_objective/scores": figures.pop("scores"),
        "eval_objective/kl": kl,
        "eval_objective/kl_k3": torch.stack([k3(mine, base).sum() for mine, base in pairs]),
        **{f"eval_{name}": column for name, column in figures.items()},
    }
    measured = {}
    for name, members in slice_members(r.row for r in responses).items():
        values = {metric: float(column[members].double().mean()) for metric, column in per_response.items()}
        values["eval_objective/scores_std"] = float(scores[members].double().std(correction=0))
        values["eval_objective/kl_per_token"] = values["eval_objective/kl"] / values["eval_length"]
        values["eval_objective/best_of_n_scores"], values["eval_objective/best_of_n_kl"] = best_of_n(
            [responses[i].row.id for i in members], scores[members], kl[members]
        )
        values["eval_samples"] = len(members)
        measured[name] = values
    return measured


def best_of_n(prompt_ids: Sequence[int], scores: Tensor, kl: Tensor) -> tuple[float, float]:
    """Mean score and KL to the reference of the best-scored response of each prompt, of scores (N,) and KL (N,)."""
    by_prompt: dict[int, list[int]] = defaultdict(list)
    for i, prompt_id in enumerate(prompt_ids):
        by_prompt[prompt_id].append(i)
    known = scores.tolist()
    best = [max(members, key=known.__getitem__) for members in by_prompt.values()]
    # KL(best || ref) = KL(best || pi) + E_best[log pi - log ref], the former at most ln n - (n - 1) / n
    to_policy = sum(best_of_n_kl(len(members)) for members in by_prompt.values()) / len(best)
    return float(scores[best].double().mean()), to_policy + float(kl[best].double().mean())

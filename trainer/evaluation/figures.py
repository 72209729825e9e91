"""Figures of a policy's responses, overall and by slice.

| metric | value for one response | reported |
|---|---|---|
| `eval_objective/scores` | the mean of all reward heads, without penalties | mean |
| `eval_objective/scores_std` | | standard deviation over responses |
| `eval_objective/kl` | k1 summed over the response: KL to the reference, nats per sequence | mean |
| `eval_objective/kl_per_token` | | KL of all responses / tokens of all responses |
| `eval_objective/kl_k3` | k3 summed over the response: the same KL with less noise, never negative | mean |
| `eval_objective/best_of_n_scores` | the best score of a prompt's n responses | mean over prompts |
| `eval_objective/best_of_n_kl` | its summed k1 + ln n - (n - 1) / n: KL to the reference | mean over prompts |
| `eval_length` | tokens, including the end-of-turn token | mean |
| `eval_finished` | 1 if the model ended its turn, 0 if the response was cut by length | share |
| `eval_repetition` | share of word trigrams that occur earlier in the same response | mean |
| `eval_refusals`, `eval_hedging`, `eval_flattery` | has a phrase of this kind: an estimate, English only | share |
| `eval_formatting` | Markdown marks per hundred words | mean |
| `eval_empty` | has neither letters nor digits | share |
| `eval_copied` | share of its five-word sequences that occur in the prompt | mean |
| `eval_other_script` | share of its letters in scripts that the prompt does not use | mean |
| `eval_variety` | share of different word pairs among all responses to its prompt | mean |
| `eval_spread` | standard deviation of its reward among the reward models' members | mean |
| `eval_beyond` | the reward model is less certain about it than about 95% of the compared responses | share |
| `eval_ceiling` | the reward model scores it higher than 99% of the compared responses | share |
| `eval_samples` | | number of responses |

Log-probs belong to the sampling distribution: logits divided by the sampling temperature. An evaluation of the
reference itself with n samples per prompt gives a point on best-of-n's curve of reward over KL. `app.domain.yardstick`
measures this curve for comparison with a policy, from stored responses of the reference.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from app.domain import texts
from app.domain.yardstick import best_of_n_kl
from app.rows import PromptRow
from app.specs import EnsembleScore
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
"""Returns the scores (N,) of responses: reward models (`RewardScorer`), or any other function of the texts."""

TOKENS_A_ROW = 32  # count at least this many tokens per row, which also limits the number of rows

# ---- scores ----------------------------------------------------------------------------------------------------------


class Looked(NamedTuple):
    """The reward models' outputs for N responses, besides the score.

    Attributes:
        heads: (N, H), one column per scoring head of all reward models.
        beyond: (N,) 1 for responses that a model doubts (`trainer.reward.doubt`), else 0; NaN if no model has a doubt.
        ceiling: (N,) 1 for responses above a model's ceiling, else 0; NaN if no model has a ceiling.
    """

    heads: Tensor
    beyond: Tensor
    ceiling: Tensor

    @classmethod
    def unknown(cls, heads: Tensor) -> "Looked":
        """Return the figures for rewards from other sources than our reward models: beyond and ceiling are NaN."""
        nothing = torch.full((len(heads),), torch.nan)
        return cls(heads, nothing, nothing)

    @property
    def spread(self) -> Tensor:
        """Standard deviation (N,) among the heads; NaN if there is only one."""
        return self.heads.std(-1, correction=0) if self.heads.shape[-1] > 1 else torch.full_like(self.beyond, torch.nan)


class RewardScorer:
    """Scores responses by all reward models' heads, combined into one score (see `ensemble_score`)."""

    def __init__(self, heads: "RewardHeads", combine: EnsembleScore, variance_weight: float) -> None:
        self.heads, self.combine, self.variance_weight = heads, combine, variance_weight

    def __call__(self, responses: Sequence[Any]) -> Tensor:
        return self.look(responses)[0]

    def look(self, responses: Sequence[Any]) -> tuple[Tensor, Looked]:
        """Return the scores (N,) and the reward models' other outputs."""
        looked = self.heads.look(responses)
        return ensemble_score(looked.heads, self.combine, self.variance_weight), looked


def look(scorer: Scorer, responses: Sequence[Any]) -> tuple[Tensor, Looked]:
    """Return the scores (N,) and the reward models' other outputs, which are unknown for another kind of scorer."""
    if isinstance(scorer, RewardScorer):
        return scorer.look(responses)
    scores = scorer(responses)
    return scores, Looked.unknown(scores[:, None])


def reward_models_scorer(
    folders: Sequence[str | Path],
    max_length: int,
    combine: EnsembleScore = "mean",
    variance_weight: float = 0.1,
    tick: Tick = no_tick,
    dtype: torch.dtype | None = None,
) -> RewardScorer:
    """Load all reward models in these folders as one scorer.

    Responses are encoded like the training data: the text that people saw, and the end-of-turn token. This token is
    also added to responses that were cut by length; `missing_eos_penalty` handles missing ends.

    Args:
        dtype: dtype of the models; None: see `working_dtype`.

    Raises:
        ModelUnavailable: a folder holds no reward model.
    """
    return RewardScorer(reward_heads(folders, max_length, tick, dtype), combine, variance_weight)


def require_numbers(responses: Sequence["Said"], scores: Tensor) -> None:
    """Raise TrainingDiverged if a score (N,) is NaN or infinite; the error names the prompt of the first one."""
    if broken := [responses[i] for i in (~scores.isfinite()).nonzero().flatten().tolist()]:
        raise TrainingDiverged(
            f"{len(broken)} of {len(responses)} responses got a score that is not a number, the first one to "
            f"prompt {broken[0].row.id}.",
            "Check the reward models; if they run in bfloat16, try float32.",
        )


class Said(Protocol):
    """A response from any source."""

    @property
    def row(self) -> PromptRow: ...
    @property
    def text(self) -> str: ...


Heads = Callable[[Sequence[Said]], Tensor]
"""Returns the rewards (N, H) of responses, one column per scoring head of all reward models."""


class RewardHeads:
    """The scoring heads of several reward models: a `Heads` that also returns the models' other outputs."""

    def __init__(self, models: Sequence[Callable[[Sequence[Said]], Looked]]) -> None:
        self._models = models

    def __call__(self, responses: Sequence[Said]) -> Tensor:
        return self.look(responses).heads

    def look(self, responses: Sequence[Said]) -> Looked:
        """Return all models' outputs. A response is beyond, or above the ceiling, if any model says so."""
        said = [model(responses) for model in self._models]
        beyond, ceiling = (torch.stack(columns) for columns in ([s.beyond for s in said], [s.ceiling for s in said]))
        return Looked(torch.cat([each.heads for each in said], -1), _any(beyond), _any(ceiling))


def _any(columns: Tensor) -> Tensor:
    """Return the largest value (N,) of each column (M, N), ignoring NaN; NaN if the whole column is NaN."""
    known = columns.nan_to_num(nan=-1.0).amax(0)
    return torch.where(known < 0, torch.nan, known)


def reward_heads(
    folders: Sequence[str | Path], max_length: int, tick: Tick = no_tick, dtype: torch.dtype | None = None
) -> RewardHeads:
    """Load all reward models in these folders, and return their heads. See `reward_models_scorer` for the encoding.

    Raises:
        ModelUnavailable: a folder holds no reward model.
    """
    return RewardHeads([_member(folder, max_length, tick, dtype) for folder in folders])


def _member(
    folder: str | Path, max_length: int, tick: Tick, dtype: torch.dtype | None
) -> Callable[[Sequence[Said]], Looked]:
    """Load one reward model; return a function that computes its outputs."""
    model, tokenizer = load_reward_model(folder, dtype)
    encoder = ChatEncoder(tokenizer, max_length)
    longest = encoder.max_length
    heads, tokens = scoring_heads(model), forward_tokens(trunk_of(model.classifier))

    @torch.no_grad()
    def read(responses: Sequence[Said]) -> Looked:
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
                "%d of %d responses are longer than the reward model's %d tokens: only their last tokens are scored.",
                *(cut, len(responses), longest),
            )
        found, beyond = torch.empty(len(sequences), len(heads)), torch.empty(len(sequences))
        for part in forward_batches(sequences, model.share, tokens):
            tick()
            packed = pack([sequences[i] for i in part], tokenizer.pad_token_id, model.share)
            rewards, doubted = model.look(packed.to(device()))
            found[part], beyond[part] = rewards[:, heads].float().cpu(), doubted.cpu()
        if model.ceiling is None:
            return Looked.unknown(found)._replace(beyond=beyond)
        return Looked(found, beyond, (found.mean(-1) > model.ceiling).float())

    return read


def scoring_heads(model: RewardModel) -> list[int]:
    """Return the columns that make up the score: the score heads or, if there are none, all heads."""
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
    """Return the log-probs of each completion's tokens, one tensor (length,) per sequence, on the CPU."""
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
    """Group indices by prompt, with at most `tokens` tokens per group; return the groups and their numbers of tokens.

    The members of a group share their prompt in a row of the forward pass (`trainer.batching.packing`), so a group is
    not split. Without `share`, each index is its own group.
    """
    by_prompt: dict[Any, list[int]] = defaultdict(list)
    for i in indices:
        by_prompt[tuple(sequences[i].prompt) if share else i].append(i)
    groups: list[list[int]] = []
    lengths: list[int] = []
    for members in by_prompt.values():
        length = tokens + 1  # makes the first member open a new group
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
    """Yield indices of sequences to forward together without gradients; sequences of one prompt are adjacent.

    Args:
        tokens: maximum tokens per forward pass (`trainer.models.sizes.forward_tokens`).
    """
    groups, lengths = prompt_groups(sequences, range(len(sequences)), share, tokens)
    for part in token_parts(range(len(groups)), lengths, tokens // TOKENS_A_ROW, tokens):
        yield [i for group in part for i in groups[group]]


# ---- measures --------------------------------------------------------------------------------------------------------


def slice_members(rows: Iterable[PromptRow]) -> dict[str, list[int]]:
    """Return the indices of each slice's rows; the slice `""` has all rows."""
    members: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        for name in ["", *slice_names(row.slices)]:
            members[name].append(i)
    return dict(members)


def figures_of(responses: Sequence[Response], scores: Tensor, looked: Looked | None = None) -> dict[str, Tensor]:
    """Return all figures that do not need log-probs, by name, each (N,)."""
    texts_ = text_figures(
        [response.row.id for response in responses],
        [texts.asked_in(response.row.messages) for response in responses],
        [response.text for response in responses],
        [len(response.sample.tokens) for response in responses],
        [response.sample.finished for response in responses],
    )
    return {"scores": scores} | texts_ | (reward_figures(looked) if looked is not None else {})


def text_figures(
    prompt_ids: Sequence[int], asked: Sequence[str], said: Sequence[str], lengths: Sequence[int], ended: Sequence[bool]
) -> dict[str, Tensor]:
    """Return the figures that depend only on an answer's text, by name, each (N,)."""
    by_prompt: dict[int, list[str]] = defaultdict(list)
    for prompt_id, text in zip(prompt_ids, said, strict=True):
        by_prompt[prompt_id].append(text)
    variety = {prompt_id: texts.variety(own) for prompt_id, own in by_prompt.items()}
    columns: dict[str, list[Any]] = {
        "length": [*lengths],
        "finished": [*ended],
        **{
            name: [figure(q, text) for q, text in zip(asked, said, strict=True)]
            for name, figure in texts.FIGURES.items()
        },
        "variety": [variety[prompt_id] for prompt_id in prompt_ids],
    }
    return {name: torch.tensor([float(v) for v in values]) for name, values in columns.items()}


def reward_figures(looked: Looked) -> dict[str, Tensor]:
    """Return the figures about the reward models' own certainty, by name, each (N,), without unknown figures."""
    columns = {"spread": looked.spread, "beyond": looked.beyond, "ceiling": looked.ceiling}
    return {name: column for name, column in columns.items() if bool(column.isfinite().all()) and len(column)}


def measure(
    responses: Sequence[Response],
    scores: Tensor,
    logps: Sequence[Tensor],
    reference_logps: Sequence[Tensor],
    looked: Looked | None = None,
) -> dict[str, dict[str, float]]:
    """Return the metrics of the table above by slice, `""` for all responses.

    Scores are (N,). Log-probs under the policy and the reference are lists with one tensor of token log-probs per
    response.
    """
    pairs = list(zip(logps, reference_logps, strict=True))
    kl = torch.stack([k1(mine, base).sum() for mine, base in pairs])
    figures = figures_of(responses, scores, looked)
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
    """Return the mean score and KL to the reference of each prompt's best response, from scores (N,) and KL (N,)."""
    by_prompt: dict[int, list[int]] = defaultdict(list)
    for i, prompt_id in enumerate(prompt_ids):
        by_prompt[prompt_id].append(i)
    known = scores.tolist()
    best = [max(members, key=known.__getitem__) for members in by_prompt.values()]
    # KL(best || ref) = KL(best || pi) + E_best[log pi - log ref]; the first term is at most ln n - (n - 1) / n
    to_policy = sum(best_of_n_kl(len(members)) for members in by_prompt.values()) / len(best)
    return float(scores[best].double().mean()), to_policy + float(kl[best].double().mean())

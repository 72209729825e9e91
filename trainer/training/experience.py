"""Training data of PPO, RLOO and GRPO: the order of prompts, sampled responses, and the models' outputs for them."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object
from torch import Tensor

from app.rows import PromptRow
from app.specs import RolloutSpec
from trainer.algorithms.kl import k1, k3
from trainer.algorithms.logprobs import scatter_to_mask
from trainer.batching.chat import TokenSequence
from trainer.batching.data import chunks
from trainer.batching.packing import pack
from trainer.evaluation.figures import Looked, Scorer, forward_batches, look, require_numbers
from trainer.models.loading import Reference
from trainer.models.policy import Policy, can_share, completion_outputs, trunk_of
from trainer.models.sizes import forward_tokens
from trainer.processes import accelerator, deal, device, generator_at, sum_over_processes
from trainer.sampling.generation import Tick
from trainer.sampling.responses import Requests, Response, Sampler
from trainer.training.critics import ActorCritic, Outputs

PROMPTS, MINIBATCHES, DEMONSTRATIONS, PAGES = range(4)  # first number of a random generator's place
PAGE_SAMPLE = -1  # index of the sample on a sample page; samples for training never have this index


# ---- order of prompts: functions of the seed and the place in the run ------------------------------------------------


def rollout_sizes(spec: RolloutSpec) -> list[int]:
    """Return the number of episodes of each rollout; the sum is `spec.episodes`."""
    whole, rest = divmod(spec.episodes, spec.rollout_size)
    return [spec.rollout_size] * whole + ([rest] if rest else [])


def in_turn(
    count: int, start: int, number: int, generator: Callable[[int], torch.Generator]
) -> Iterator[tuple[int, int]]:
    """Yield elements `start` to `start + number` of an endless sequence over `count` items, each with its turn.

    In each turn, every item comes once, in a random order given by `generator(turn)`. Turns count from 0.
    """
    order: list[int] = []
    turn = -1
    for place in range(start, start + number):
        if place // count != turn:
            turn = place // count
            order = torch.randperm(count, generator=generator(turn)).tolist()
        yield order[place % count], turn


def draw(rows: Sequence[PromptRow], spec: RolloutSpec, start: int, episodes: int) -> Requests:
    """Return the prompts of episodes `start` to `start + episodes`, each with its sample indices.

    Each prompt has `samples_per_prompt` consecutive episodes. If a prompt comes twice, it is listed once with the
    sample indices of both.
    """
    k = spec.samples_per_prompt
    first, last = start // k, (start + episodes - 1) // k
    drawn: dict[int, tuple[PromptRow, list[int]]] = {}
    turns = in_turn(len(rows), first, last - first + 1, lambda turn: generator_at(spec.seed, PROMPTS, turn))
    for number, (i, turn) in enumerate(turns, start=first):
        for j in range(k):
            if start <= number * k + j < start + episodes:
                drawn.setdefault(i, (rows[i], []))[1].append(turn * k + j)
    return list(drawn.values())


def page_prompts(rows: Sequence[PromptRow], seed: int, most: int = 8) -> list[PromptRow]:
    """Choose the prompts whose answers are shown during training, spread over the slices.

    Each choice takes a prompt whose slices have been chosen least so far.
    """
    left = torch.randperm(len(rows), generator=generator_at(seed, PAGES)).tolist()
    shown: dict[tuple[str, str], int] = {}
    chosen: list[int] = []
    while left and len(chosen) < most:
        best = min(left, key=lambda i: sum(shown.get(item, 0) for item in rows[i].slices.items()))
        left.remove(best)
        chosen.append(best)
        for item in rows[best].slices.items():
            shown[item] = shown.get(item, 0) + 1
    return [rows[i] for i in chosen]


# ---- rollouts --------------------------------------------------------------------------------------------------------


class Rollout(NamedTuple):
    """Responses with the models' outputs before any update: all data that updates need and a checkpoint stores.

    Tensors are on the CPU. There are B responses, in the order they were drawn, of at most T tokens, to prompts of at
    most P tokens.

    Attributes:
        rows: (B,) row number of the prompt in the prompts file.
        prompts, prompt_lengths: (B, P) token ids, padded on the right; (B,).
        tokens, lengths: (B, T) token ids, including the end-of-turn token if there is one; (B,).
        finished: (B,) False if a response was cut by length.
        scores: (B,) raw scores, before normalisation, clipping and penalty.
        logps, reference_logps: (B, T) log-probs of the tokens under the policy that sampled them and the reference.
        values: (B, T) value of the state before each token; 0 without a critic.
    """

    rows: Tensor
    prompts: Tensor
    prompt_lengths: Tensor
    tokens: Tensor
    lengths: Tensor
    finished: Tensor
    scores: Tensor
    logps: Tensor
    reference_logps: Tensor
    values: Tensor

    @property
    def valid_mask(self) -> Tensor:
        """(B, T), True on the tokens of each response. It is also the mask of the values: `gae` explains why."""
        return torch.arange(self.tokens.shape[1]) < self.lengths[:, None]

    @property
    def kl(self) -> Tensor:
        """(B,) nats per sequence: k1 summed over its tokens."""
        return self._summed(k1(self.logps, self.reference_logps))

    @property
    def kl_k3(self) -> Tensor:
        """(B,) nats per sequence by k3: never negative, and less noisy while policy and reference are close."""
        return self._summed(k3(self.logps, self.reference_logps))

    def _summed(self, values: Tensor) -> Tensor:
        return torch.where(self.valid_mask, values, 0).sum(1)

    def sequences(self) -> list[TokenSequence]:
        return [
            TokenSequence(prompt[:n].tolist(), tokens[:m].tolist())
            for prompt, n, tokens, m in zip(
                self.prompts, self.prompt_lengths.tolist(), self.tokens, self.lengths.tolist(), strict=True
            )
        ]


class Collected(NamedTuple):
    """A policy's responses, the rollout made from them, and further figures from the reward models."""

    responses: list[Response]
    rollout: Rollout
    looked: Looked


class Clock:
    """Seconds by activity."""

    def __init__(self, seconds: Mapping[str, float] | None = None) -> None:
        self.seconds = dict(seconds or {})
        self._last = time.monotonic()

    def spent_on(self, what: str) -> None:
        """Add the time since the last call to an activity."""
        now = time.monotonic()
        self.seconds[what] = self.seconds.get(what, 0.0) + now - self._last
        self._last = now


class Collector:
    """Samples responses, scores them and computes log-probs and values.

    Every process does its share; all processes get all results in the same order.
    """

    def __init__(
        self,
        module: ActorCritic | Policy,
        reference: Reference,
        sampler: Sampler,
        scorer: Scorer,
        rows: Sequence[PromptRow],
        batch_size: int,
        pad_id: int,
        tick: Tick,
    ) -> None:
        self.module, self.reference, self.sampler, self.scorer = module, reference, sampler, scorer
        self.batch_size, self.pad_id, self.tick = batch_size, pad_id, tick
        self.numbers = {row.id: number for number, row in enumerate(rows)}
        with reference() as model:  # may be of another architecture
            self.reference_share = module.share and can_share(trunk_of(model))
            self.forward_tokens = forward_tokens(trunk_of(model))

    def collect(self, wanted: Requests, clock: Clock) -> Collected:
        """Sample responses of the current policy. A sample depends on its prompt and index, not on the process.

        Raises:
            TrainingDiverged: a score is NaN or infinite; it is raised before any update.
            RunCancelled: raised by the tick.
        """
        # 1. Sample this process's share. With few prompts, one prompt's responses can exceed a sampling batch.
        dealer = accelerator()
        parts = [(row, part) for row, indices in wanted for part in chunks(indices, self.batch_size)]
        mine = parts[dealer.process_index :: dealer.num_processes]
        sampled = [response for batch in self.sampler.respond(mine, self.batch_size) for response in batch]
        clock.spent_on("generation")

        # 2. Score them, and gather the results of all processes.
        scored = []
        if sampled:
            scores, looked = look(self.scorer, sampled)
            scored = list(zip(sampled, scores.float().cpu().tolist(), *(c.tolist() for c in looked), strict=True))
        by_place = {(item[0].row.id, item[0].sample_index): item for item in gather_object(scored)}
        everything = [by_place[row.id, index] for row, indices in wanted for index in indices]
        responses = [item[0] for item in everything]
        scores = torch.tensor([item[1] for item in everything])
        looked = Looked(*(torch.tensor([item[column] for item in everything]) for column in (2, 3, 4)))
        require_numbers(responses, scores)

        # 3. Compute log-probs and values with the policy that sampled, and log-probs with the reference.
        rollout = self._look(responses, scores)
        clock.spent_on("scoring")
        return Collected(responses, rollout, looked)

    @torch.no_grad()
    def _look(self, responses: list[Response], scores: Tensor) -> Rollout:
        """Compute log-probs and values of responses.

        The policy's log-probs come from the same forward pass that updates use, so that the first ratio is 1. Sampling
        computed the same log-probs token by token (a test compares the two).
        """
        sequences = [response.sequence for response in responses]
        lengths = torch.tensor([len(sequence.completion) for sequence in sequences])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        logps, values, reference_logps = seen = torch.zeros(3, *mask.shape)
        temperature = self.sampler.sampling.temperature

        for part, counts in deal(forward_batches(sequences, self.module.share, self.forward_tokens)):
            self.tick()
            packed = pack([sequences[i] for i in part], self.pad_id, self.module.share).to(device())
            outputs = self.module(packed, temperature)
            if counts:
                logps[part] = scatter_to_mask(outputs.logps.cpu(), mask[part])
                if isinstance(outputs, Outputs):
                    values[part] = scatter_to_mask(outputs.values.cpu(), mask[part])
        with self.reference() as reference:
            for part, counts in deal(forward_batches(sequences, self.reference_share, self.forward_tokens)):
                self.tick()
                packed = pack([sequences[i] for i in part], self.pad_id, self.reference_share).to(device())
                if counts:
                    flat = completion_outputs(reference, packed, temperature).logps.cpu()
                    reference_logps[part] = scatter_to_mask(flat, mask[part])
        logps, values, reference_logps = sum_over_processes(seen)
        return Rollout(
            rows=torch.tensor([self.numbers[response.row.id] for response in responses]),
            prompts=_padded([sequence.prompt for sequence in sequences]),
            prompt_lengths=torch.tensor([len(sequence.prompt) for sequence in sequences]),
            tokens=_padded([sequence.completion for sequence in sequences]),
            lengths=lengths,
            finished=torch.tensor([response.sample.finished for response in responses]),
            scores=scores,
            logps=logps,
            reference_logps=reference_logps,
            values=values,
        )


def _padded(ids: Sequence[Sequence[int]]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.as_tensor(row) for row in ids], batch_first=True)


# ---- metrics and sample pages ----------------------------------------------------------------------------------------


def rollout_values(rollout: Rollout, members: Sequence[int]) -> dict[str, float]:
    """Return the metrics of some episodes of a rollout, such as all episodes or a slice."""
    kl = rollout.kl[members]
    return {
        "objective/scores": float(rollout.scores[members].mean()),
        "objective/kl": float(kl.mean()),
        "objective/kl_per_token": float(kl.sum() / rollout.lengths[members].sum()),
        "objective/kl_k3": float(rollout.kl_k3[members].mean()),
        "objective/entropy": float(-rollout.logps[members].sum(1).mean()),
    }


def page(responses: Sequence[Response], rollout: Rollout) -> list[dict[str, Any]]:
    """Return responses as the rows of a sample page."""
    return [
        {
            "prompt_id": response.row.id,
            "messages": list(response.row.messages),
            "slices": response.row.slices,
            "response": response.text,
            "score": score,
            "kl": kl,
            "finished": response.sample.finished,
        }
        for response, score, kl in zip(responses, rollout.scores.tolist(), rollout.kl.tolist(), strict=True)
    ]

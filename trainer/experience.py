"""What PPO, RLOO and GRPO train on: prompts in turn, sampled responses, and what the models said of them."""

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
from trainer.chat import TokenSequence
from trainer.critics import ActorCritic, Outputs
from trainer.data import chunks
from trainer.evaluation import Looked, Scorer, forward_batches, look, require_numbers
from trainer.generation import Tick
from trainer.modeling import Reference, device
from trainer.packing import pack
from trainer.policy import Policy, can_share, completion_outputs, trunk_of
from trainer.rollout import Response, Sampler
from trainer.sizes import forward_tokens
from trainer.training import accelerator, deal, generator_at, sum_over_processes

Wanted = list[tuple[PromptRow, list[int]]]
"""Prompts, each with the indices of the samples that are wanted of it."""


PROMPTS, MINIBATCHES, DEMONSTRATIONS, PAGES = range(4)  # first part of a random generator's place
PAGE_SAMPLE = -1  # index of the sample that a page shows: none that is trained on has it


# ---- which prompt when: functions of the seed and the place in the run -----------------------------------------------


def rollout_sizes(spec: RolloutSpec) -> list[int]:
    """Episodes of each rollout; they add up to `spec.episodes`."""
    whole, rest = divmod(spec.episodes, spec.rollout_size)
    return [spec.rollout_size] * whole + ([rest] if rest else [])


def in_turn(
    count: int, start: int, number: int, generator: Callable[[int], torch.Generator]
) -> Iterator[tuple[int, int]]:
    """Items `start` to `start + number` of an endless row of `count` things: each once in random order, then again in
    another. With the turn, how often the thing has come before. `generator(turn)` decides that turn's order.
    """
    order: list[int] = []
    turn = -1
    for place in range(start, start + number):
        if place // count != turn:
            turn = place // count
            order = torch.randperm(count, generator=generator(turn)).tolist()
        yield order[place % count], turn


def draw(rows: Sequence[PromptRow], spec: RolloutSpec, start: int, episodes: int) -> Wanted:
    """The prompts of episodes `start` to `start + episodes`, each with its sample indices; `samples_per_prompt`
    episodes in a row are of one prompt, and one that comes twice is read once.
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
    """Prompts whose answers are shown as training goes on, spread over the slices: each time one of those slices that
    were shown least.
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
    """Responses and what the models said of them, before any update: all that updates need, and a checkpoint keeps.

    On the CPU. B responses, in the order they were drawn, of at most T tokens, to prompts of at most P.

    Attributes:
        rows: (B,) the row of the prompts file.
        prompts, prompt_lengths: (B, P) token ids, padded on the right; (B,).
        tokens, lengths: (B, T) token ids, the end-of-turn token included where there is one; (B,).
        finished: (B,) False where a response was cut by length.
        scores: (B,) raw: before normalisation, clipping and penalty.
        logps, reference_logps: (B, T) of the tokens, in the policy that sampled and in the reference.
        values: (B, T) of the state before each token; 0 without a critic.
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
        """(B, T), True on the tokens of each response. The values' mask too: `gae` says why it is not one longer."""
        return torch.arange(self.tokens.shape[1]) < self.lengths[:, None]

    @property
    def kl(self) -> Tensor:
        """(B,) nats a sequence: k1 summed over its tokens."""
        return self._summed(k1(self.logps, self.reference_logps))

    @property
    def kl_k3(self) -> Tensor:
        """(B,) the same by k3: never negative, and of less noise while policy and reference are near."""
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
    """Responses of a policy, what models said of them, and what else its reward models said."""

    responses: list[Response]
    rollout: Rollout
    looked: Looked


class Clock:
    """Seconds by what they were spent on."""

    def __init__(self, seconds: Mapping[str, float] | None = None) -> None:
        self.seconds = dict(seconds or {})
        self._last = time.monotonic()

    def spent_on(self, what: str) -> None:
        """Books the time since the last call."""
        now = time.monotonic()
        self.seconds[what] = self.seconds.get(what, 0.0) + now - self._last
        self._last = now


class Collector:
    """Samples, scores and looks at responses. Every process does its share; all get the whole, in one order."""

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

    def collect(self, wanted: Wanted, clock: Clock) -> Collected:
        """Responses of the policy as it is now. A sample depends on its prompt and its index, not on who draws it.

        Raises:
            TrainingDiverged: a score is NaN or infinite, before anything is learned from it.
            RunCancelled: by the tick.
        """
        # 1. Sample this process's share. Of few prompts there are more responses each than are sampled at once.
        dealer = accelerator()
        parts = [(row, part) for row, indices in wanted for part in chunks(indices, self.batch_size)]
        mine = parts[dealer.process_index :: dealer.num_processes]
        sampled = [response for batch in self.sampler.respond(mine, self.batch_size) for response in batch]
        clock.spent_on("generation")

        # 2. Score them, and bring all processes' together.
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

        # 3. Log-probs and values of the policy that sampled, log-probs of the reference.
        rollout = self._look(responses, scores)
        clock.spent_on("scoring")
        return Collected(responses, rollout, looked)

    @torch.no_grad()
    def _look(self, responses: list[Response], scores: Tensor) -> Rollout:
        """The policy's log-probs are computed by the pass that updates use, so that the first ratio is 1; sampling
        computed the same ones token by token (a test holds the two together).
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


# ---- what is shown ---------------------------------------------------------------------------------------------------


def rollout_values(rollout: Rollout, members: Sequence[int]) -> dict[str, float]:
    """Metrics of some episodes of a rollout: of all, or of a slice."""
    kl = rollout.kl[members]
    return {
        "objective/scores": float(rollout.scores[members].mean()),
        "objective/kl": float(kl.mean()),
        "objective/kl_per_token": float(kl.sum() / rollout.lengths[members].sum()),
        "objective/kl_k3": float(rollout.kl_k3[members].mean()),
        "objective/entropy": float(-rollout.logps[members].sum(1).mean()),
    }


def page(responses: Sequence[Response], rollout: Rollout) -> list[dict[str, Any]]:
    """Responses as a sample page shows them."""
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

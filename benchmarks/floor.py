"""Measure the time of each part of a round, and compare it with its minimum: `python -m benchmarks.floor`.

Each part runs once on the default model and the starter prompts. The minimum ("floor") is the time for the necessary
floating-point operations at the rate of plain matrix products. With `--count` nothing is run: only the floors are
printed, for answers of `--tokens` tokens.

A model has W weights in its L layers, A = heads * head size, and V * H weights in its head. The operations are:

    forward  2 W per token + 2 V H per predicted token + 4 L A per pair of tokens of which one attends to the other
    learning 2 more forward passes for full weights; 1 for an adapter, whose own products add less than a tenth
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from app.artifacts import ArtifactStore
from app.rows import PairRow
from app.specs import DPOSpec, ModelRef, OnPolicyDPOSpec, RewardSpec
from benchmarks.training import auto_precision, matmul_rate, starter_prompts
from trainer.batching.chat import ChatEncoder
from trainer.evaluation.figures import reward_heads
from trainer.models.default_model import DEFAULT_MODEL, fetch_model
from trainer.models.loading import load_causal_lm, load_tokenizer, sampling_dtype
from trainer.models.policy import head_of, trunk_of
from trainer.models.sizes import sizes_for
from trainer.recipes import dpo, reward
from trainer.reporting import ConsoleReporter
from trainer.sampling.responses import Response, Sampler
from trainer.speed.precision import name_of

Group = tuple[int, Sequence[int]]  # number of tokens of a prompt, and of each answer to it


class Work(NamedTuple):
    """Numbers of tokens that go through the layers, tokens that are predicted, and token pairs in attention."""

    tokens: int
    predicted: int
    attended: int


def work_of(groups: Sequence[Group]) -> Work:
    """Return the work of reading each prompt once, followed by all its answers."""
    tokens = predicted = attended = 0
    for prompt, answers in groups:
        tokens += prompt + sum(answers)
        predicted += sum(answers)
        attended += prompt * (prompt + 1) // 2 + sum(n * prompt + n * (n + 1) // 2 for n in answers)
    return Work(tokens, predicted, attended)


class Costs(NamedTuple):
    """Floating-point operations of a forward pass: per token, per predicted token, per attended pair."""

    token: int
    predicted: int
    attended: int

    @classmethod
    def of(cls, model: Any) -> "Costs":
        """Return the costs of a plain causal language model."""
        config, trunk = model.config.get_text_config(), trunk_of(model)
        weights = sum(module.weight.numel() for module in trunk.modules() if isinstance(module, nn.Linear))
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        heads = config.num_attention_heads * width
        return cls(2 * weights, 2 * head_of(model)[0].weight.numel(), 4 * config.num_hidden_layers * heads)

    def forward(self, work: Work, predicts: bool = True) -> int:
        predicted = work.predicted * self.predicted if predicts else 0
        return work.tokens * self.token + predicted + work.attended * self.attended


class Part(NamedTuple):
    """A part of a round.

    Attributes:
        passes: passes per token; a backward pass to an adapter counts as one.
        precision: dtype of its matrix products.
        run: function that runs the part and returns the seconds.
    """

    name: str
    groups: Sequence[Group]
    passes: int
    predicts: bool
    precision: str
    run: Callable[[], float]


def pairs_of(groups: Sequence[Group], count: int) -> list[Group]:
    """Return up to `count` pairs of neighboring answers: the first pair of every prompt, then the second..."""
    each = [[(prompt, answers[i : i + 2]) for i in range(0, len(answers) - 1, 2)] for prompt, answers in groups]
    turns = itertools.zip_longest(*each)
    return [pair for turn in turns for pair in turn if pair is not None][:count]


def table(parts: Sequence[Part], costs: Costs, rates: dict[str, float], count_only: bool) -> None:
    print("| part | tokens | TFLOP | floor, s | measured, s |\n|---|---|---|---|---|")
    for part in parts:
        work = work_of(part.groups)
        flop = part.passes * costs.forward(work, part.predicts)
        seconds = "" if count_only else f"{part.run():.1f}"
        floor = flop / rates[part.precision]
        print(f"| {part.name} | {work.tokens} | {flop / 1e12:.2f} | {floor:.1f} | {seconds} |", flush=True)


class Round:
    """A round's parts on one model; later parts read the outputs of earlier ones."""

    def __init__(self, args: argparse.Namespace, model: str, folder: Path) -> None:
        self.args, self.ref, self.folder = args, ModelRef(base=model), folder
        self.rows = starter_prompts()[: args.prompts]
        self.dtype, self.auto = sampling_dtype("auto", self.ref), auto_precision(model)
        self.causal = load_causal_lm(self.ref, dtype=self.dtype)
        self.encoder = ChatEncoder(load_tokenizer(model))
        self.responses: list[list[Response]] = []

    def groups(self) -> list[Group]:
        if self.responses:
            return [(len(own[0].prompt), [len(r.sample.tokens) for r in own]) for own in self.responses]
        prompts = [self.encoder.prompt_within(row.messages, self.encoder.max_length)[0] for row in self.rows]
        return [(len(prompt), [self.args.tokens] * self.args.samples) for prompt in prompts]

    def sample(self) -> float:
        sampler = Sampler(self.causal, self.encoder, self.args.max_new_tokens, 1.0, 0, "benchmark")
        wanted = [(row, range(self.args.samples)) for row in self.rows]
        started = time.perf_counter()
        at_once = sizes_for(self.ref, self.dtype).rollout_batch_size
        found = [response for batch in sampler.respond(wanted, at_once) for response in batch]
        seconds = time.perf_counter() - started
        self.responses = [[r for r in found if r.row.id == row.id] for row in self.rows]
        return seconds

    def snapshot(self, count: int) -> str:
        """Write a file of the first `count` pairs, in the order of `pairs_of`; the first answer is the winner."""
        own = [[(first, second) for first, second in zip(r[::2], r[1::2], strict=False)] for r in self.responses]
        pairs = [pair for turn in itertools.zip_longest(*own) for pair in turn if pair is not None][:count]
        rows = [
            PairRow(
                comparison_id=number,
                prompt_id=first.row.id,
                messages=first.row.messages,
                response_a=first.text,
                response_b=second.text,
                finished_a=first.sample.finished,
                finished_b=second.sample.finished,
                preference=-3,
                p_b=0,
                split="train",
            )
            for number, (first, second) in enumerate(pairs)
        ]
        path = self.folder / f"{count}.jsonl"
        path.write_text("".join(row.model_dump_json() + "\n" for row in rows))
        return str(path)

    def train_reward(self) -> float:
        spec = RewardSpec(backbone=self.ref, snapshot=self.snapshot(self.args.comparisons))
        out = self.folder / "reward"
        out.mkdir()
        return reward.train(spec, ArtifactStore(self.folder), ConsoleReporter(stream=None), out).seconds

    def score(self) -> float:
        heads = reward_heads([self.folder / "reward"], 1024)
        started = time.perf_counter()
        heads([response for own in self.responses for response in own])
        return time.perf_counter() - started

    def train_dpo(self, count: int, epochs: int) -> float:
        optimiser = OnPolicyDPOSpec.model_fields["optimiser"].default.model_copy(update={"epochs": epochs})
        snapshot, store = self.snapshot(count), ArtifactStore(self.folder)
        spec = DPOSpec(policy=self.ref, reference=self.ref, snapshot=snapshot, optimiser=optimiser)
        out = self.folder / f"dpo-{count}"
        out.mkdir()
        return dpo.train(spec, store, ConsoleReporter(stream=None), out).seconds

    def parts(self) -> list[Part]:
        args, groups = self.args, self.groups()
        people, chosen = pairs_of(groups, args.comparisons), pairs_of(groups, args.prompts * args.pairs)
        # The reward model reads each answer once to fit its heads and once to measure. DPO runs the reference once.
        return [
            Part("reward model", people, 2, False, self.auto, self.train_reward),
            Part("scoring", groups, 1, False, self.auto, self.score),
            Part("DPO, people's pairs", people, 2 * 2 + 1, True, self.auto, lambda: self.train_dpo(len(people), 2)),
            Part("DPO, chosen pairs", chosen, 2 + 1, True, self.auto, lambda: self.train_dpo(len(chosen), 1)),
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument(
        "--store", type=Path, default=Path(".benchmark"), help="folder of the model, which is downloaded once"
    )
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--samples", type=int, default=16, help="answers per prompt")
    parser.add_argument("--comparisons", type=int, default=100, help="of people")
    parser.add_argument("--pairs", type=int, default=4, help="pairs per prompt that the reward model chooses")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=30, help="tokens per answer that --count assumes")
    parser.add_argument("--count", action="store_true", help="run nothing")
    args = parser.parse_args()
    store = ArtifactStore(args.store.absolute())
    model = str(store.resolve(fetch_model(store, args.model, say=lambda line: print(line, flush=True))))
    rates = {name: matmul_rate(getattr(torch, name)) for name in ("float32", "bfloat16")}
    with tempfile.TemporaryDirectory() as folder:
        a_round = Round(args, model, Path(folder))
        print(
            f"{torch.get_num_threads()} threads; products at {rates['float32'] / 1e9:.0f} GFLOP/s in fp32, "
            f"{rates['bfloat16'] / 1e9:.0f} in bf16; auto takes {a_round.auto}"
        )
        seconds = 0.0 if args.count else a_round.sample()  # first: the lengths of its answers determine other costs
        sampled = Part("sampling", a_round.groups(), 1, True, name_of(a_round.dtype), lambda: seconds)
        table([sampled, *a_round.parts()], Costs.of(a_round.causal), rates, args.count)


if __name__ == "__main__":
    main()

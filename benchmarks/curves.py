"""Measure reward and KL while DPO and PPO train the default model with a scripted reward: the curves in docs/.

The reward is a rule, so no reward model has to be trusted. It is 1 for an answer of twelve words, lower for other
lengths, and 0 for an empty answer or at least twenty-four words. DPO learns from pairs of the model's own samples that
the rule has judged; PPO uses the rule as its reward.

A point is the mean reward and the KL to the starting model in nats per response. DPO's points, and PPO's first and last
point, are measured on held-out prompts with new samples. PPO's other points come from its own rollouts on train
prompts. For comparison, best-of-n sampling from the starting model is measured on the held-out prompts.
"""

import argparse
import json
import random
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from app.artifacts import ArtifactStore
from app.rows import PairRow, PromptRow
from app.specs import DPOSpec, EvaluateSpec, Generation, Lora, ModelRef, PPOSpec, SampleSpec
from trainer.checkpoints import Checkpoints
from trainer.models.default_model import DEFAULT_MODEL, fetch_model
from trainer.recipes import dpo, evaluate, ppo, sample
from trainer.recipes.sample import Completion
from trainer.reporting import ConsoleReporter
from trainer.sampling.responses import Response

PROMPTS = Path(__file__).parent.parent / "app" / "projects" / "starter_content" / "prompts.jsonl"
WORDS, MAX_NEW_TOKENS, HELDOUT = 12, 48, 20
BEST_OF = (1, 2, 4, 8, 16)
UNITS = {"dpo": "optimiser steps", "ppo": "episodes", "best_of_n": "samples a prompt"}
QUIET = ConsoleReporter(stream=None)


def reward(text: str) -> float:
    return max(0.0, 1 - abs(len(text.split()) - WORDS) / WORDS)


def scorer(responses: Sequence[Response]) -> Tensor:
    return torch.tensor([reward(response.text) for response in responses])


class Point(NamedTuple):
    """A measurement: steps (DPO) or episodes (PPO) so far, or n (best of n); mean reward; KL in nats per response."""

    at: int
    reward: float
    kl: float


class Bench:
    """The default model, its prompts, and a folder to work in."""

    def __init__(self, store: ArtifactStore, root: Path, seed: int) -> None:
        self.store, self.root, self.seed = store, root, seed
        self.base = ModelRef(base=str(store.resolve(fetch_model(store, DEFAULT_MODEL, say=print))))
        with PROMPTS.open(encoding="utf-8") as lines:
            rows = [PromptRow(id=i, messages=tuple(json.loads(line)["messages"])) for i, line in enumerate(lines)]
        random.Random(0).shuffle(rows)  # the same held-out prompts for every seed
        self.heldout, self.train = rows[:HELDOUT], rows[HELDOUT:]

    def file(self, name: str, rows: Sequence[PromptRow | PairRow]) -> str:
        path = self.root / name
        path.write_text("".join(row.model_dump_json() + "\n" for row in rows))
        return str(path)

    def evaluate(self, policy: ModelRef, samples_per_prompt: int) -> dict[str, float]:
        spec = EvaluateSpec(
            policy=policy,
            reference=self.base,
            reward_models=("scripted",),
            prompts=self.file("heldout.jsonl", self.heldout),
            generation=Generation(samples_per_prompt=samples_per_prompt, max_new_tokens=MAX_NEW_TOKENS, batch_size=64),
            seed=1000 + self.seed,
        )
        return evaluate.evaluate(spec, self.store, QUIET, lambda completions: None, scorer).metrics

    def measure(self, at: int, policy: ModelRef) -> Point:
        values = self.evaluate(policy, 4)
        point = Point(at, values["eval_objective/scores"], values["eval_objective/kl"])
        print(f"  at {at}: reward {point.reward:.3f}, KL {point.kl:.2f}", flush=True)
        return point

    def best_of_n(self) -> list[Point]:
        """Measure best-of-n sampling from the starting model, without training."""
        measured = []
        for n in BEST_OF:
            values = self.evaluate(self.base, n)
            name = "eval_objective/best_of_n"
            measured.append(Point(n, values[f"{name}_scores"], values[f"{name}_kl"]))
            print(f"  best of {n}: reward {measured[-1].reward:.3f}, KL {measured[-1].kl:.2f}", flush=True)
        return measured

    def judged_pairs(self, samples_per_prompt: int) -> list[PairRow]:
        """Return pairs of the model's own samples with different rewards: best with worst, and so on inwards."""
        completions: list[Completion] = []
        spec = SampleSpec(
            models=(self.base,),
            prompts=self.file("train.jsonl", self.train),
            generation=Generation(samples_per_prompt=samples_per_prompt, max_new_tokens=MAX_NEW_TOKENS, batch_size=64),
            seed=self.seed,
        )
        sample.sample(spec, self.store, QUIET, completions.extend)
        pairs: list[PairRow] = []
        for row in self.train:
            ranked = sorted((c for c in completions if c.prompt_id == row.id), key=lambda c: -reward(c.text))
            for good, bad in zip(ranked, reversed(ranked), strict=True):
                if reward(good.text) - reward(bad.text) > 0.2 and bad.text.strip():
                    pairs.append(self._pair(len(pairs), row, good, bad))
        return pairs

    def _pair(self, number: int, row: PromptRow, good: Completion, bad: Completion) -> PairRow:
        return PairRow(
            comparison_id=number,
            prompt_id=row.id,
            messages=row.messages,
            response_a=good.text,
            response_b=bad.text,
            finished_a=good.finish_reason == "eos",
            finished_b=bad.finish_reason == "eos",
            preference=-3,
            p_b=0,
            split="train",
        )

    def dpo(self, points: int) -> list[Point]:
        """Train with DPO and measure the adapter at `points` steps, from the run's checkpoints."""
        pairs = self.judged_pairs(8)
        spec = DPOSpec(
            policy=self.base,
            reference=self.base,
            snapshot=self.file("pairs.jsonl", pairs),
            seed=self.seed,
        )
        defaults = spec.optimiser
        steps = defaults.epochs * -(-len(pairs) // defaults.batch_size)
        wanted = sorted({round(steps * i / points) for i in range(1, points)})
        print(f"DPO, seed {self.seed}: {len(pairs)} pairs, {steps} steps, {defaults!r}", flush=True)
        kept = self.root / "kept"

        def keep(step: int) -> None:
            if step in wanted:
                shutil.copytree(checkpoints.folder / f"step-{step:08d}", kept / str(step))

        checkpoints = Checkpoints(ArtifactStore(self.root), "checkpoints", spec, every_seconds=0, on_saved=keep)
        final = self.root / "dpo"
        final.mkdir()
        dpo.train(spec, self.store, QUIET, final, checkpoints)
        measured = [self.measure(0, self.base)]
        for step in wanted:
            measured.append(self.measure(step, self._adapter_at(kept / str(step), final)))
        return [*measured, self.measure(steps, ModelRef(base=self.base.base, adapter=str(final)))]

    def _adapter_at(self, checkpoint: Path, final: Path) -> ModelRef:
        """Write the adapter of a checkpoint to a folder like the final one."""
        from safetensors.torch import load_file, save_file

        folder = checkpoint / "adapter"
        shutil.copytree(final, folder)
        weights = load_file(checkpoint / "tensors.safetensors")
        prefix = "weights/causal."
        adapter = {
            n.removeprefix(prefix).replace(".default.", "."): t for n, t in weights.items() if n.startswith(prefix)
        }
        assert adapter.keys() == load_file(folder / "adapter_model.safetensors").keys()
        save_file(adapter, folder / "adapter_model.safetensors")
        return ModelRef(base=self.base.base, adapter=str(folder))

    def ppo(self, episodes: int, kl_target: float) -> list[Point]:
        """Train with PPO; measure each rollout's own samples on train prompts, start and end on held-out prompts."""
        spec = PPOSpec(
            policy=self.base,
            reference=self.base,
            reward_models=("scripted",),
            prompts=self.file("train.jsonl", self.train),
            episodes=episodes,
            max_new_tokens=MAX_NEW_TOKENS,
            kl_target=kl_target,
            missing_eos_penalty=None,
            lora=Lora(),
            seed=self.seed,
        )
        print(f"PPO, seed {self.seed}: {episodes} episodes, {spec.optimiser!r}", flush=True)
        reporter, final = ConsoleReporter(stream=None), self.root / "ppo"
        final.mkdir()
        measured = [self.measure(0, self.base)]
        ppo.train(spec, self.store, reporter, final, scorer=scorer)
        # Between first and last, use each rollout's own samples on train prompts, which PPO itself uses.
        size = spec.rollout_size
        own = zip(reporter.values("objective/scores"), reporter.values("objective/kl"), strict=True)
        measured += [Point(size * number, *values) for number, values in enumerate(own) if number]
        for point in measured[1:]:
            print(f"  at {point.at}: own samples' reward {point.reward:.3f}, KL {point.kl:.2f}")
        return [*measured, self.measure(episodes, ModelRef(base=self.base.base, adapter=str(final)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("algorithm", choices=list(UNITS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--episodes", type=int, default=320)
    parser.add_argument("--kl-target", type=float, default=PPOSpec.model_fields["kl_target"].default)
    parser.add_argument("--points", type=int, default=4)
    parser.add_argument("--store", type=Path, default=Path(".benchmark"))
    parser.add_argument("--output", type=Path, help="a JSON file for the points of every seed")
    args = parser.parse_args()
    runs: list[dict[str, object]] = []
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as root:
            bench = Bench(ArtifactStore(args.store.absolute()), Path(root), seed)
            match args.algorithm:
                case "dpo":
                    points = bench.dpo(args.points)
                case "ppo":
                    points = bench.ppo(args.episodes, args.kl_target)
                case _:
                    points = bench.best_of_n()
            runs.append({"seed": seed, "points": points})
        if args.output:
            found = {"unit": UNITS[args.algorithm], "kl_target": args.kl_target, "runs": runs}
            args.output.write_text(json.dumps(found))


if __name__ == "__main__":
    main()

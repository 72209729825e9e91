"""Compare our training speed with TRL's: the same model, tokens, optimiser batches, dtype and optimiser.

The two sides run in turn, each in its own process. A ratio is printed only if their losses agree. The first two
optimiser steps of a process are not counted, because they also allocate memory that later steps reuse. Pairs per second
are those of optimiser steps. If the reference's log-probs are not stored, our side also counts the time of the
reference's pass over the same pairs, because TRL computes it inside the step.

`*_lora` are the service's defaults: an adapter of rank 16, and the precision that `auto` chooses here. RLOO and GRPO
are compared with these defaults, too, in episodes per second including sampling, without the first rollout.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from app.artifacts import ArtifactStore
from app.rows import PairRow, PromptRow
from app.specs import Precision
from benchmarks import data
from benchmarks.rollouts import SPECS, RolloutJob
from benchmarks.sampling import STARTER_PROMPTS
from benchmarks.sides import Job
from benchmarks.work import Work
from trainer.models.default_model import DEFAULT_MODEL, fetch_model
from trainer.models.loading import load_config
from trainer.processes import device
from trainer.speed.precision import choose, name_of

WARM_UP = 2  # steps that are not counted
# Absolute tolerance of losses: fp32 sums have another order, over several steps; with bf16, TRL's logits are bf16 too.
TOLERANCE = {"float32": 2e-3, "bfloat16": 2e-2}
# Tolerance of rollout losses, relative to the largest: advantages are differences, so the losses are always small.
ROLLOUT_TOLERANCE = {"float32": 1e-2, "bfloat16": 1e-1}
KINDS = ("dpo", "dpo_stored_reference", "reward", "dpo_lora", "reward_lora")


class Figures(NamedTuple):
    """Results of one side; `rate` is pairs, or episodes, per second."""

    rate: float
    peak_mib: float
    losses: list[float]


def run(side: str, job: Work, with_reference: bool = False) -> Figures:
    """Run one side in a separate process."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as handle:
        handle.write(job.model_dump_json())
        handle.flush()
        command = [sys.executable, "-m", "benchmarks.sides", side, handle.name]
        # Both sides wait without spinning, like our worker: it is faster on shared cores, and CPU time counts only
        # work.
        environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    said = json.loads(done.stdout.splitlines()[-1])
    counted = said["step_seconds"][1 if isinstance(job, RolloutJob) else WARM_UP :]
    steps = len(said["step_seconds"])
    reference = said["reference_seconds"] / steps * len(counted) if with_reference else 0.0
    return Figures(job.batch_size * len(counted) / (sum(counted) + reference), said["peak_mib"], said["losses"])


def agreement(name: str, job: Work, mine: Figures, others: Figures) -> float:
    """Return the largest difference of losses, for rollouts relative to the largest loss; stop if it is too large."""
    apart, tolerance = max(abs(a - b) for a, b in zip(mine.losses, others.losses, strict=True)), TOLERANCE
    if isinstance(job, RolloutJob):
        apart, tolerance = apart / max(map(abs, others.losses)), ROLLOUT_TOLERANCE
    if apart > tolerance[job.precision]:
        raise SystemExit(f"{name}: losses differ by {apart}: {mine.losses} and {others.losses}")
    return apart


def compare(name: str, ours: Job, theirs: Job, peer: str, repeats: int, with_reference: bool = False) -> float:
    """Run both sides alternately; return the ratio of their median rates. The peer `plain` is ours without rankings."""
    mine, others = [], []
    for _ in range(repeats):
        mine.append(run("ours", ours, with_reference))
        others.append(run("ours" if peer == "plain" else "theirs", theirs))
        apart = agreement(name, ours, mine[-1], others[-1])
    scale = theirs.batch_size / ours.batch_size if peer == "plain" else 1.0  # pairs per element of ours
    return show(name, "pairs/s", peer, [f._replace(rate=f.rate * scale) for f in mine], others, apart)


def compare_rollouts(name: str, job: RolloutJob, repeats: int) -> float:
    """Run our side and TRL alternately; return the ratio of their median rates.

    TRL also runs once on our answers, and the losses of this run must agree with ours.
    """
    mine, others = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(repeats):
            recorded = job.model_copy(update={"answers": Path(folder) / "answers.json"} if number == 0 else {})
            mine.append(run("ours", recorded))
            if number == 0:
                apart = agreement(name, job, mine[0], run("theirs", recorded))
            others.append(run("theirs", job))
    return show(name, "episodes/s", "TRL", mine, others, apart)


def show(name: str, unit: str, peer: str, mine: list[Figures], others: list[Figures], apart: float) -> float:
    """Print both sides' figures; return the ratio of their median rates."""
    rates = [statistics.median(figures.rate for figures in side) for side in (mine, others)]
    spread = [f.rate / g.rate for f, g in zip(mine, others, strict=True)]
    print(
        f"{name:24} ours {rates[0]:7.3f} {unit} {max(f.peak_mib for f in mine):7.0f} MiB   "
        f"{peer} {rates[1]:7.3f} {unit} {max(f.peak_mib for f in others):7.0f} MiB   losses agree to {apart:.1e}   "
        f"ratios {min(spread):.2f} to {max(spread):.2f}",
        flush=True,
    )
    return rates[0] / rates[1]


def lengths_of(rows: Sequence[PairRow], model: str) -> str:
    """Describe pairs: their number, and mean tokens of prompts, responses and packed pairs."""
    from trainer.batching.chat import ChatEncoder
    from trainer.batching.data import encode_pairs
    from trainer.batching.packing import packed_length
    from trainer.models.loading import load_tokenizer

    pairs = encode_pairs(rows, ChatEncoder(load_tokenizer(model), 1024)).train
    n = len(pairs)
    prompt = sum(len(p.chosen.prompt) for p in pairs) / n
    response = sum(len(s.completion) for p in pairs for s in p.sequences) / n / 2
    packed = sum(packed_length(p.sequences, True) for p in pairs)
    return f"{n} pairs, on average prompts {prompt:.0f}, responses {response:.0f}, pairs packed {packed / n:.0f} tokens"


def matmul_rate(dtype: torch.dtype = torch.float32) -> float:
    """Return the best rate of matrix products in the default model's shapes, in operations per second."""
    a, b = torch.randn(1024, 576, dtype=dtype), torch.randn(576, 1536, dtype=dtype)
    a @ b
    best = 0.0
    for _ in range(20):
        started = time.perf_counter()
        a @ b
        best = max(best, 2 * a.numel() * b.shape[1] / (time.perf_counter() - started))
    return best


def auto_precision(model: str) -> Precision:
    """Return the choice of `auto` for this model on this device, so that both sides use the same precision."""
    return name_of(choose("auto", load_config(model).get_text_config().hidden_size, device()))


def starter_prompts() -> list[PromptRow]:
    with STARTER_PROMPTS.open(encoding="utf-8") as lines:
        return [PromptRow(id=i, messages=tuple(json.loads(line)["messages"])) for i, line in enumerate(lines)]


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "files", nargs="*", type=Path, help="files of pairs in any import format, used in addition to generated pairs"
    )
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--only", choices=[*KINDS, "ranking_k4", *SPECS])
    parser.add_argument(
        "--steps", type=int, default=4, help=f"optimiser steps, of which the first {WARM_UP} are not counted"
    )
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument(
        "--rollouts", type=int, default=3, help="rollouts of RLOO and GRPO; the first one is not counted"
    )
    parser.add_argument("--rollout-size", type=int, default=64, help="answers per rollout, which is one batch")
    parser.add_argument("--k", type=int, default=8, help="answers per prompt")
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument(
        "--store", type=Path, default=Path(".benchmark"), help="folder of the model, which is downloaded once"
    )
    parser.add_argument("--cpu-time", action="store_true", help="measure CPU time of all threads, for a busy machine")
    args = parser.parse_args(arguments)
    if args.steps <= WARM_UP:
        parser.error(f"--steps must be above {WARM_UP}: the first ones are not counted")
    if args.rollouts < 2:
        parser.error("--rollouts must be above 1: the first one is not counted")
    return args


def model_of(args: argparse.Namespace) -> str:
    """Return the folder of the model, which is fetched if it is missing."""
    store = ArtifactStore(args.store.absolute())
    return str(store.resolve(fetch_model(store, args.model, say=lambda line: print(line, flush=True))))


def main(args: argparse.Namespace, model: str) -> list[str]:
    """Print figures as they come, and return the lines with the ratios."""
    torch.manual_seed(0)
    wanted = args.steps * args.batch_size
    sets: dict[str, list[PairRow]] = {"made": data.made(wanted)}
    for path in args.files:
        rows = data.read(path)
        if len(rows) < wanted:
            raise SystemExit(
                f"{path}: {len(rows)} pairs with a winner are too few for {args.steps} steps of {args.batch_size}."
            )
        pick = torch.randperm(len(rows))[:wanted].tolist()
        sets[path.parent.name if path.stem == "pairs" or path.name.startswith("pairs.") else path.stem] = [
            rows[i] for i in pick
        ]
    threads = torch.get_num_threads()
    clock: dict[str, Any] = {"threads": threads, "cpu_time": args.cpu_time}
    seconds = "CPU" if args.cpu_time else "wall"
    auto = auto_precision(model)
    print(
        f"{threads} threads, {seconds} seconds, fp32 matrix products {matmul_rate() / 1e9:.0f} GFLOP/s, "
        f"auto takes {auto}",
        flush=True,
    )

    full: Precision = "bfloat16" if torch.cuda.is_available() else "float32"
    ratios: dict[str, list[float]] = {}
    for name, rows in sets.items():
        print(f"{name}: {lengths_of(rows, model)}", flush=True)
        common: dict[str, Any] = {"model": model, "rows": rows, "batch_size": args.batch_size, **clock}
        for kind in KINDS:
            if args.only in (None, kind):
                lora = kind.endswith("_lora")
                job = Job(
                    kind=kind.split("_")[0],
                    precomputed=kind == "dpo_stored_reference",
                    lora=lora,
                    precision=auto if lora else full,
                    learning_rate=1e-4 if lora else 1e-5,
                    **common,
                )
                ratios.setdefault(kind, []).append(
                    compare(kind, job, job, "TRL", args.repeats, with_reference=kind in ("dpo", "dpo_lora"))
                )
    if args.only in (None, "ranking_k4"):
        # A single batch holds all pairs and is repeated, so that both ways see the same pairs in every step.
        rankings = data.made(max(4, args.batch_size // 4), responses=4)
        pairs = [row.model_copy(update={"ranking": None}) for row in rankings]
        common = {"kind": "reward", "model": model, "epochs": args.steps, "precision": full, **clock}
        common["learning_rate"] = 1e-5
        ours = Job(rows=rankings, batch_size=len(pairs) // 6, **common)
        plain = Job(rows=pairs, batch_size=len(pairs), **common)
        ratios["ranking_k4"] = [compare("ranking_k4", ours, plain, "plain", args.repeats)]
    for kind in SPECS:
        if args.only in (None, kind):
            rollout_job = RolloutJob(
                kind=kind,
                model=model,
                lora=True,
                precision=auto,
                learning_rate=6e-4,
                prompts=starter_prompts(),
                batch_size=args.rollout_size,
                epochs=2,
                rollouts=args.rollouts,
                k=args.k,
                max_new_tokens=args.max_new_tokens,
                **clock,
            )
            ratios[kind] = [compare_rollouts(kind, rollout_job, args.repeats)]
    # With several data sets, report the geometric mean.
    return [f"ratio {name} {statistics.geometric_mean(values):.2f}" for name, values in ratios.items()]


if __name__ == "__main__":
    options = parsed()
    print("\n".join(main(options, model_of(options))))

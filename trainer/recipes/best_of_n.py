"""Best-of-n distillation: each turn samples n answers per prompt and imitates the best (RAFT, Dong et al. 2023).

There is little to tune except n, and the reward model only has to rank answers. The distribution of the best of n
answers has a KL of at most ln n - (n - 1) / n nats to the policy that sampled them, and a turn only imitates it. This
bound makes the method the yardstick for the other methods.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from app.artifacts import ArtifactStore
from app.rows import DemonstrationRow, PromptRow
from app.specs import BestOfNSpec, SFTSpec
from trainer.algorithms.choosing import best, controlled_scores
from trainer.batching.data import read_pairs
from trainer.checkpoints import Checkpoints
from trainer.evaluation.figures import Heads
from trainer.recipes import sft
from trainer.recipes.sft import MIN_DEMONSTRATIONS
from trainer.reporting import PolicyResult, Reporter
from trainer.training.phases import workplace
from trainer.training.scored_answers import Answers
from trainer.training.turns import Turns


def train(
    spec: BestOfNSpec,
    store: ArtifactStore,
    reporter: Reporter,
    folder: Path,
    checkpoints: Checkpoints | None = None,
    heads: Callable[[], Heads] | None = None,
) -> PolicyResult:
    """Train a policy and save it to `folder`. `heads` replaces the reward models.

    Raises:
        InvalidInput: the prompts file is invalid, or too few answers are finished and better than others.
        ModelUnavailable: the policy or a reward model does not load.
        StorageFull: the disk has no room for a checkpoint or a model; earlier checkpoints stay.
        RunCancelled, TrainingDiverged: no model is saved.
    """
    comparisons = read_pairs(store.resolve(spec.snapshot)) if spec.snapshot else []
    heldout = [row for row in comparisons if row.split == "heldout"]
    with workplace(checkpoints) as work:
        run = Turns(spec, store, reporter, checkpoints, work, heldout, heads)
        for turn in range(spec.turns):
            if not run.goes_on:
                break
            answers, scores = run.turn_answers(turn)
            rows, gain = best_rows(spec, answers, scores, run.rows)
            if len(rows) < MIN_DEMONSTRATIONS:
                run.notes.append(
                    f"Turn {turn + 1} found only {len(rows)} finished answers that scored better than others. It needs "
                    f"{MIN_DEMONSTRATIONS}, so the run ended before this turn."
                )
                break
            sft_spec = SFTSpec(
                policy=run.policy,
                demonstrations=run.written(f"turn-{turn + 1}-best.jsonl", rows),
                lora=spec.lora,
                optimiser=run.optimiser,
                max_length=spec.max_length,
                seed=spec.seed,
            )
            run.train(f"turn-{turn + 1}", sft, sft_spec, {"turn/pairs": float(len(rows)), "turn/margin": gain})
        return run.finish(folder)


def best_rows(
    spec: BestOfNSpec, answers: Answers, scores: torch.Tensor, rows: Sequence[PromptRow]
) -> tuple[list[DemonstrationRow], float]:
    """Return the best answers to each prompt, and how far their mean score exceeds the mean score of all answers."""
    controlled = controlled_scores(
        scores, answers.lengths, answers.finished, spec.length_weight, spec.missing_eos_penalty
    )
    by_id = {row.id: row for row in rows}
    found: list[int] = []
    for places in answers.by_prompt.values():
        own = [answers.items[i] for i in places]
        chosen = best(controlled[places].tolist(), [a.choosable for a in own], [a.text for a in own], spec.best)
        found += [places[i] for i in chosen]
    demonstrations = [
        DemonstrationRow(
            id=number,
            messages=by_id[answers.items[i].prompt_id].messages,
            response=answers.items[i].text,
            slices=by_id[answers.items[i].prompt_id].slices,
        )
        for number, i in enumerate(found)
    ]
    gain = float(scores[found].mean() - scores.mean()) if found else 0.0
    return demonstrations, gain

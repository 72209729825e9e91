"""DPO on people's comparisons, then turns of DPO on pairs of the policy's own answers, chosen by the reward models.

People's comparisons teach the direction, but another policy may have given their answers. A turn trains on the current
policy's answers: the reward models choose the best and the worst of `samples_per_prompt` (online DPO: Guo et al. 2024;
iterative DPO: Xu et al. 2023). `trainer.training.turns` explains the measurements, and how the KL budget and people's
held-out comparisons limit the policy's change.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from app.artifacts import ArtifactStore
from app.rows import PairRow, PromptRow
from app.specs import DPOSpec, OnPolicyDPOSpec
from trainer.algorithms.choosing import best_against_worst, controlled_scores
from trainer.batching.data import MIN_PAIRS, encode_pairs, read_pairs
from trainer.checkpoints import Checkpoints
from trainer.evaluation.figures import Heads
from trainer.processes import generator_at
from trainer.recipes import dpo
from trainer.reporting import PolicyResult, Reporter
from trainer.training.phases import workplace
from trainer.training.scored_answers import Answers
from trainer.training.turns import Turns

PEOPLES_BUDGET = 0.5  # share of the KL budget for people's comparisons if turns follow, so that the turns have the rest
MIXED = 2_000_004  # place in the run for random numbers: which of people's comparisons a turn mixes in


def train(
    spec: OnPolicyDPOSpec,
    store: ArtifactStore,
    reporter: Reporter,
    folder: Path,
    checkpoints: Checkpoints | None = None,
    heads: Callable[[], Heads] | None = None,
) -> PolicyResult:
    """Train a policy and save it to `folder`. `heads` replaces the reward models.

    An interrupted run resumes in its current phase and ends with the same weights as an uninterrupted run.

    Raises:
        InvalidInput: too few comparisons to learn from, or a file of rows is invalid.
        ModelUnavailable: the policy or a reward model does not load.
        StorageFull: the disk has no room for a checkpoint or a model; earlier checkpoints stay.
        RunCancelled, TrainingDiverged: no model is saved.
    """
    comparisons = read_pairs(store.resolve(spec.snapshot))
    heldout = [row for row in comparisons if row.split == "heldout"]
    with workplace(checkpoints) as work:
        run = Turns(spec, store, reporter, checkpoints, work, heldout, heads)
        encoded = encode_pairs(comparisons, run.encoder, close_cut=False)
        people = [pair.row for pair in encoded.train if not pair.tied]  # DPO does not learn from ties

        # 1. Train on people's comparisons. This needs no reward model, and makes the policy's samples worth scoring.
        if spec.human_epochs:
            optimiser = run.optimiser.model_copy(
                update={"learning_rate": spec.human_learning_rate, "epochs": spec.human_epochs}
            )
            people_spec = dpo_spec(run, spec, str(store.resolve(spec.snapshot)), optimiser=optimiser)
            run.dropped += run.train(
                "comparisons", dpo, people_spec, budget_share=PEOPLES_BUDGET if spec.turns else 1.0
            )

        # 2. Turns. Each starts from the previous turn's policy, which is also the reference. The KL budget limits them.
        for turn in range(spec.turns):
            if not run.goes_on:
                break
            answers, scores = run.turn_answers(turn)
            pairs, margin = chosen_pairs(spec, answers, scores, run.rows)
            values = {"turn/pairs": float(len(pairs)), "turn/margin": margin}
            if len(pairs) < MIN_PAIRS:
                run.notes.append(
                    f"Turn {turn + 1} found only {len(pairs)} pairs whose scores differ by more than "
                    f"{spec.min_margin:g}. It needs {MIN_PAIRS}, so the run ended before this turn."
                )
                break
            mixed = mixed_in(spec, people, len(pairs), turn)
            snapshot = run.written(f"turn-{turn + 1}-pairs.jsonl", [*pairs, *mixed, *heldout])
            turn_spec = dpo_spec(run, spec, snapshot, nll_weight=spec.nll_weight)
            run.train(f"turn-{turn + 1}", dpo, turn_spec, values)

        # 3. Save the last policy that people's held-out comparisons do not show to be worse.
        return run.finish(folder)


def dpo_spec(run: Turns, spec: OnPolicyDPOSpec, snapshot: str, **changes: object) -> DPOSpec:
    """Return the spec of a DPO phase that starts from the current policy and uses it as the reference."""
    settings = {
        "policy": run.policy,
        "reference": run.policy,
        "snapshot": snapshot,
        "lora": spec.lora,
        "optimiser": run.optimiser,
        "beta": spec.beta,
        "max_length": spec.max_length,
        "seed": spec.seed,
    }
    return DPOSpec.model_validate(settings | changes)


def chosen_pairs(
    spec: OnPolicyDPOSpec, answers: Answers, scores: torch.Tensor, rows: Sequence[PromptRow]
) -> tuple[list[PairRow], float]:
    """Return a turn's pairs and their mean score difference. Their ids are negative, unlike those of people's pairs."""
    scores = controlled_scores(scores, answers.lengths, answers.finished, spec.length_weight, spec.missing_eos_penalty)
    by_id = {row.id: row for row in rows}
    pairs: list[PairRow] = []
    margins = []
    for prompt_id, places in answers.by_prompt.items():
        own = [answers.items[i] for i in places]
        found = best_against_worst(
            scores[places].tolist(),
            [answer.choosable for answer in own],
            [answer.text for answer in own],
            spec.pairs_per_prompt,
            spec.min_margin,
        )
        for good, bad in found:
            margins.append(float(scores[places[good]] - scores[places[bad]]))
            pairs.append(
                PairRow(
                    comparison_id=-1 - len(pairs),
                    prompt_id=prompt_id,
                    messages=by_id[prompt_id].messages,
                    response_a=own[good].text,
                    response_b=own[bad].text,
                    finished_b=own[bad].finished,
                    preference=-1,
                    p_b=0,
                    split="train",
                    slices=by_id[prompt_id].slices,
                )
            )
    return pairs, sum(margins) / len(margins) if margins else 0.0


def mixed_in(spec: OnPolicyDPOSpec, people: Sequence[PairRow], pairs: int, turn: int) -> list[PairRow]:
    """Draw people's comparisons to mix in with a turn's `pairs`, so that they make up `human_share` of its rows.

    If there are too few of people's comparisons, return all of them.
    """
    wanted = round(pairs * spec.human_share / (1 - spec.human_share))
    order = torch.randperm(len(people), generator=generator_at(spec.seed, MIXED, turn)).tolist()
    return [people[i] for i in order[:wanted]]

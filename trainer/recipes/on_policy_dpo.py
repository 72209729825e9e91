"""DPO on people's comparisons, then in turns on pairs of the policy's own answers that the reward model has chosen.

People's comparisons teach the direction, but on answers that another policy may have given. A turn teaches on answers
that the policy gives now: the best against the worst of `samples_per_prompt`, as the reward models score them (online
DPO: Guo et al. 2024; iterative DPO: Xu et al. 2023). `trainer.training.turns` says what is measured, and how the KL
budget and people's held-out comparisons keep the policy from going too far.
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

PEOPLES_BUDGET = 0.5  # of the KL budget, where turns follow: as much is left to them
MIXED = 2_000_004  # a place in the run: which of people's comparisons a turn mixes in


def train(
    spec: OnPolicyDPOSpec,
    store: ArtifactStore,
    reporter: Reporter,
    folder: Path,
    checkpoints: Checkpoints | None = None,
    heads: Callable[[], Heads] | None = None,
) -> PolicyResult:
    """Trains a policy and saves it to `folder`. `heads` replaces the reward models.

    A run that was interrupted goes on in the phase it was in, and ends with the weights it would have ended with.

    Raises:
        InvalidInput: too few comparisons to learn from, or a file of rows is wrong.
        ModelUnavailable: policy or a reward model does not load.
        StorageFull: no room for a checkpoint or a model; what was saved before stays.
        RunCancelled, TrainingDiverged: no model is saved.
    """
    comparisons = read_pairs(store.resolve(spec.snapshot))
    heldout = [row for row in comparisons if row.split == "heldout"]
    with workplace(checkpoints) as work:
        run = Turns(spec, store, reporter, checkpoints, work, heldout, heads)
        encoded = encode_pairs(comparisons, run.encoder, close_cut=False)
        people = [pair.row for pair in encoded.train if not pair.tied]  # those that DPO learns from

        # 1. What people said. It needs no reward model, and brings the policy to where its samples are worth scoring.
        if spec.human_epochs:
            optimiser = run.optimiser.model_copy(
                update={"learning_rate": spec.human_learning_rate, "epochs": spec.human_epochs}
            )
            people_spec = dpo_spec(run, spec, str(store.resolve(spec.snapshot)), optimiser=optimiser)
            run.dropped += run.train(
                "comparisons", dpo, people_spec, budget_share=PEOPLES_BUDGET if spec.turns else 1.0
            )

        # 2. Turns, each from the policy before, with that policy as the reference; no further than the KL budget.
        for turn in range(spec.turns):
            if not run.goes_on:
                break
            answers, scores = run.turn_answers(turn)
            pairs, margin = chosen_pairs(spec, answers, scores, run.rows)
            values = {"turn/pairs": float(len(pairs)), "turn/margin": margin}
            if len(pairs) < MIN_PAIRS:
                run.notes.append(
                    f"Turn {turn + 1} found {len(pairs)} pairs whose scores differ by more than {spec.min_margin:g}, "
                    f"fewer than {MIN_PAIRS}: the run ended before it."
                )
                break
            mixed = mixed_in(spec, people, len(pairs), turn)
            snapshot = run.written(f"turn-{turn + 1}-pairs.jsonl", [*pairs, *mixed, *heldout])
            turn_spec = dpo_spec(run, spec, snapshot, nll_weight=spec.nll_weight)
            run.train(f"turn-{turn + 1}", dpo, turn_spec, values)

        # 3. The last policy that people's held-out comparisons do not speak against.
        return run.finish(folder)


def dpo_spec(run: Turns, spec: OnPolicyDPOSpec, snapshot: str, **changes: object) -> DPOSpec:
    """DPO from the policy as it is, which is the reference too."""
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
    """The pairs of a turn, and their mean difference of scores. Their ids are negative: people's are not."""
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
    """People's comparisons that make up `human_share` of a turn's rows beside so many pairs; all, if they are fewer."""
    wanted = round(pairs * spec.human_share / (1 - spec.human_share))
    order = torch.randperm(len(people), generator=generator_at(spec.seed, MIXED, turn)).tolist()
    return [people[i] for i in order[:wanted]]

"""Play a cell, and record the policy's answers at each step with the reward model's and the labelers' scores."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from app.artifacts import ArtifactStore
from app.rounds.snapshots import write_lines
from app.rows import PairRow, PromptRow
from app.specs import EvaluateSpec, Generation, Lora, ModelRef, Optimiser, RewardSpec, RLOOSpec, SampleSpec
from benchmarks.hacks import world
from benchmarks.hacks.cells import Cell
from benchmarks.loop.cells import Labels
from benchmarks.loop.labels import Crew, Texts, by_prompt, choose
from benchmarks.loop.measure import Said, read_completions
from trainer.evaluation.figures import Looked, RewardScorer, reward_models_scorer
from trainer.recipes import evaluate, group, reward, sample
from trainer.reporting import ConsoleReporter

STEPS, BASE, ROUND, ABOUT = "steps.jsonl", "base.jsonl", "evaluation.json", "cell.json"
BASE_SAMPLES, BASE_SEED = 8, 999_983
COMPARED = 4  # the base's answers per prompt that each new answer is compared with
SPAM = {1.0: 0.5, 2.0: 0.8}  # share of judgments by spammers, by strength
FEWEST = 72


class Recorder(RewardScorer):
    """A scorer that records the responses that it scores."""

    def __init__(self, scorer: RewardScorer) -> None:
        super().__init__(scorer.heads, scorer.combine, scorer.variance_weight)
        self.rollouts: list[list[dict[str, Any]]] = []

    def look(self, responses: Sequence[Any]) -> tuple[Tensor, Looked]:
        scores, looked = super().look(responses)
        if responses and responses[0].sample_index >= 0:  # not a sample page
            self.rollouts.append(lines_of(responses, scores, looked))
        return scores, looked


def lines_of(responses: Sequence[Any], scores: Tensor, looked: Looked) -> list[dict[str, Any]]:
    """Return answers as rows of a file."""
    columns = (scores, looked.spread, looked.beyond, looked.ceiling)
    return [
        {
            "prompt": response.row.id,
            "said": response.text,
            "tokens": len(response.sample.tokens),
            "finished": response.sample.finished,
            "proxy": score,
            "spread": spread,
            "beyond": beyond,
            "ceiling": ceiling,
        }
        for response, score, spread, beyond, ceiling in zip(responses, *(c.tolist() for c in columns), strict=True)
    ]


def crew_of(cell: Cell) -> Crew:
    """Return four labelers with the bias or the spammers of the cell's hack."""
    bias = world.BIASES.get(cell.hack)

    def score(question: str, response: str) -> float:
        return world.hidden(question, response) + (cell.strength * bias(response) if bias else 0.0)

    labels = Labels(overlap=1.2, heldout_share=0.1)
    return Crew(score, SPAM[cell.strength] if cell.hack == "spammers" else 0.1, labels, cell.seed)


def play(cell: Cell, store: ArtifactStore, base: str, folder: Path) -> float | None:
    """Play a cell into `folder`; return the reward model's accuracy on comparisons that it did not train on.

    Raises:
        PrefloopError: a recipe failed.
    """
    rows = world.prompts()
    train = [row for row in rows if row.slices["split"] == "train"]
    policy, seed = ModelRef(base=base), 1000 * cell.seed + 7
    reporter = ConsoleReporter(stream=None)

    # 1. Sample the base's answers, which are the same in all cells; labelers compare some of them.
    only_train = write_lines(store, "prompts", train, compressed=False)[1]
    texts = base_answers(store, policy, rows, cell.max_new_tokens)
    crew, judged = crew_of(cell), list[PairRow]()
    count = round(FEWEST / cell.strength) if cell.hack == "too_few" else cell.comparisons
    for split, wanted in (("train", count), ("heldout", 40)):
        of_split = [each for each in texts if each.row.slices["split"] == split]
        judged += crew.judge(choose(of_split, wanted, "random", seed), split, len(judged) + 1)
    snapshot = write_lines(store, "snapshots", judged, compressed=True)[1]

    # 2. Train a reward model on the comparisons.
    reward_folder = folder / "reward"
    reward_folder.mkdir()
    learned = reward.train(
        RewardSpec(backbone=policy, snapshot=snapshot, max_length=128, seed=seed), store, reporter, reward_folder
    )

    # 3. Train the policy with RLOO. Monitors record alarms but do not stop the run.
    leash = cell.hack != "no_leash"
    k = cell.samples_per_prompt
    spec = RLOOSpec(
        policy=policy,
        reference=policy,
        reward_models=(str(reward_folder),),
        lora=Lora(rank=8, alpha=16),
        optimiser=Optimiser(
            learning_rate=cell.learning_rate * (1 if leash else cell.strength), epochs=1, batch_size=64, warmup_ratio=0
        ),
        prompts=only_train,
        episodes=cell.steps * cell.prompts_a_step * k,
        rollout_size=cell.prompts_a_step * k,
        samples_per_prompt=k,
        kl_coef=0.05 if leash else 0.0,
        kl_target=cell.kl_target if leash else None,
        max_new_tokens=cell.max_new_tokens,
        evaluate_every=cell.steps,
        max_length=128,
        monitors="note",
        seed=seed,
    )
    scorer = Recorder(reward_models_scorer([reward_folder], 128, spec.ensemble_score, spec.variance_weight))
    trained = folder / "policy"
    trained.mkdir()
    group.train(spec, store, reporter, trained, scorer=scorer)
    kl = reporter.values("objective/kl_k3")
    with (folder / STEPS).open("w") as out:
        for number, (lines, nats) in enumerate(zip(scorer.rollouts, kl, strict=False), 1):
            out.write(json.dumps({"step": number, "kl": nats, "answers": lines}) + "\n")

    # 4. Score the base's answers with the same reward model, and run the round's evaluation.
    said = [
        Said(each.row, completion.text)
        for each in texts
        if each.row.slices["split"] == "train"
        for completion in each.completions[:COMPARED]
    ]
    with (folder / BASE).open("w") as out:
        for (row, text), score in zip(said, RewardScorer.look(scorer, said)[0].tolist(), strict=True):
            out.write(json.dumps({"prompt": row.id, "said": text, "proxy": score}) + "\n")
    heldout = write_lines(store, "prompts", [r for r in rows if r.slices["split"] == "heldout"], compressed=False)[1]
    measured = ConsoleReporter(stream=None)
    new = ModelRef(base=base, adapter=str(trained))
    evaluate.evaluate(
        EvaluateSpec(
            policy=new,
            before=policy,
            reference=policy,
            reward_models=(str(reward_folder),),
            prompts=heldout,
            generation=Generation(samples_per_prompt=2, max_new_tokens=cell.max_new_tokens),
            max_length=128,
            seed=seed,
        ),
        store,
        measured,
        lambda batch: None,
    )
    found: dict[str, dict[str, float]] = {}
    for metric in measured.recorded:
        found.setdefault(metric.slice, {})[metric.name] = metric.value
    (folder / ROUND).write_text(json.dumps(found))
    (folder / ABOUT).write_text(cell.model_dump_json())
    return learned.eval_accuracy


def base_answers(store: ArtifactStore, base: ModelRef, rows: list[PromptRow], max_new_tokens: int) -> list[Texts]:
    """Return the base's answers to all prompts, which are sampled once per store."""
    location = f"hacks/base-{max_new_tokens}"
    if not store.exists(location):
        generation = Generation(samples_per_prompt=BASE_SAMPLES, max_new_tokens=max_new_tokens)
        prompts = write_lines(store, "prompts", rows, compressed=False)[1]
        with store.folder(location) as folder:
            spec = SampleSpec(models=(base,), prompts=prompts, generation=generation, seed=BASE_SEED)
            sample.train(spec, store, ConsoleReporter(stream=None), folder)
    return by_prompt(rows, read_completions(store.resolve(location)))

"""Play a cell: rounds of sampling, labeling and training, and the evaluation of each policy."""

from collections.abc import Sequence
from typing import Any

from app.domain.intervals import mean_interval
from app.domain.verdicts import by_reward_model
from app.rounds.snapshots import write_lines
from app.rows import PairRow, PromptRow
from app.simulation.preference import PREFERENCES
from app.specs import EvaluateSpec, Generation, ModelRef, SampleSpec
from benchmarks.loop import measure, methods, prompts
from benchmarks.loop.cells import Cell, Labels
from benchmarks.loop.labels import Crew, Texts, by_prompt, choose, comparisons, samples_needed
from benchmarks.loop.workshop import Made, Workshop

NEW_ANSWERS = 2  # the new policy's answers per prompt
# Parts of a seed, so that no two runs of a cell draw the same numbers.
LABELING, CREW, REWARD, POLICY, VERDICT, EVALUATION = range(1, 7)
BASE_SEED = 999_983  # seed of the base's answers to measured prompts, which all cells share


def seed_of(cell: Cell, number: int, part: int) -> int:
    """Return the seed of one part of a round."""
    return (cell.seed + 1) * 1_000_000 + number * 1_000 + part


def play(cell: Cell, workshop: Workshop) -> dict[str, Any]:
    """Play a cell and return its result: the figures of each round, by kind of prompt.

    Raises:
        PrefloopError: a recipe failed.
    """
    there = prompts.load(cell.prompts)
    labels, base = methods.labels_of(cell), workshop.base_ref
    policy, reward_model, rows = base, None, list[PairRow]()
    answers: list[Texts] | None = None  # the previous policy's answers
    rounds = []
    for number in range(1, cell.rounds + 1):
        seconds: dict[str, float] = {}
        texts = label_samples(cell, workshop, there, labels, policy, reward_model, number, seconds)
        crew = Crew(PREFERENCES[cell.preference], cell.noise, labels, seed_of(cell, number, CREW))
        rows += labeled(cell, labels, texts, crew, number, len(rows))
        snapshot = write_lines(workshop.store, "snapshots", rows, compressed=True)[1]

        reward = workshop.run(methods.reward_spec(cell, policy, snapshot, seed_of(cell, number, REWARD)))
        seconds["reward"] = reward.seconds
        train = prompts.write(workshop.store, there.train)
        spec = methods.policy_spec(cell, policy, base, snapshot, reward.location, train, seed_of(cell, number, POLICY))
        trained = workshop.run(spec)
        seconds["policy"] = trained.seconds
        new = policy_of(spec, trained)
        adopted = methods.method_of(cell).adopts_always or not is_worse(
            cell, workshop, there.heldout, new, policy, reward.location, number, seconds
        )
        policy = new if adopted else policy
        reward_model = reward.location
        measured, answers = evaluate(cell, workshop, there.measured, policy, reward_model, number, answers, seconds)
        rounds.append(
            {
                "round": number,
                "judgments": crew.judged,
                "comparisons": sum(row.split == "train" for row in rows),
                "heldout_comparisons": sum(row.split == "heldout" for row in rows),
                "reward": reward.result,
                "policy": trained.result,
                "adopted": adopted,
                "kinds": measured,
                "seconds": seconds,
            }
        )
    return {"cell": cell.model_dump(mode="json"), "name": cell.name, "rounds": rounds}


def policy_of(spec: Any, trained: Made) -> ModelRef:
    """Return the trained policy: an adapter on the base, or a separate model."""
    if spec.lora is None:
        return ModelRef(base=trained.location)
    return ModelRef(base=spec.policy.base, adapter=trained.location)


def is_worse(
    cell: Cell,
    workshop: Workshop,
    rows: list[PromptRow],
    new: ModelRef,
    before: ModelRef,
    reward_model: str,
    number: int,
    seconds: dict[str, float],
) -> bool:
    """Return whether the round's reward model finds the new policy worse than the previous one, beyond chance.

    This is the check of a round in the service. It uses both policies' answers to held-out prompts; the measured
    prompts are used only by the benchmark.
    """
    made = workshop.run(
        SampleSpec(
            models=(new, before),
            prompts=prompts.write(workshop.store, rows),
            generation=Generation(samples_per_prompt=NEW_ANSWERS, max_new_tokens=cell.max_new_tokens),
            reward_models=(reward_model,),
            seed=seed_of(cell, number, VERDICT),
        )
    )
    seconds["verdict"] = made.seconds
    texts = by_prompt(rows, measure.read_completions(workshop.store.resolve(made.location)))
    verdict = by_reward_model(mean_interval(measure.score_differences(texts, NEW_ANSWERS)))
    return verdict is not None and verdict.word == "worse"


def label_samples(
    cell: Cell,
    workshop: Workshop,
    there: prompts.Prompts,
    labels: Labels,
    policy: ModelRef,
    reward_model: str | None,
    number: int,
    seconds: dict[str, float],
) -> list[Texts]:
    """Sample the newest policy on train prompts, and on held-out prompts if comparisons are held out."""
    train, heldout = comparisons(cell.judgments, labels)
    k = samples_needed(train, len(there.train), labels.samples_per_prompt)
    rows = there.train + (there.heldout if heldout else [])
    scored = reward_model is not None and labels.selection != "random"
    made = workshop.run(
        SampleSpec(
            models=(policy,),
            prompts=prompts.write(workshop.store, rows),
            generation=Generation(samples_per_prompt=k, max_new_tokens=cell.max_new_tokens),
            reward_models=(reward_model,) if scored and reward_model else (),
            seed=seed_of(cell, number, LABELING),
        )
    )
    seconds["label_samples"] = made.seconds
    return by_prompt(rows, measure.read_completions(workshop.store.resolve(made.location)))


def labeled(cell: Cell, labels: Labels, texts: Sequence[Texts], crew: Crew, number: int, before: int) -> list[PairRow]:
    """Return the round's judged comparisons. Pairs on held-out prompts are random, so they measure without bias."""
    rows: list[PairRow] = []
    wanted = zip(("train", "heldout"), comparisons(cell.judgments, labels), strict=True)
    for split, count in wanted:
        of_split = [each for each in texts if each.row.slices["split"] == split]
        selection = labels.selection if split == "train" else "random"
        pairs = choose(of_split, count, selection, seed_of(cell, number, LABELING)) if count else []
        rows += crew.judge(pairs, split, before + len(rows) + 1)
    return rows


def evaluate(
    cell: Cell,
    workshop: Workshop,
    rows: list[PromptRow],
    policy: ModelRef,
    reward_model: str,
    number: int,
    before: list[Texts] | None,
    seconds: dict[str, float],
) -> tuple[dict[str, dict[str, Any]], list[Texts]]:
    """Return a policy's figures by kind of prompt, and its answers.

    Args:
        before: answers of the previous policy; None in the first round, where the previous policy is the base.
    """
    location = prompts.write(workshop.store, rows)
    base_made = workshop.run(
        SampleSpec(
            models=(workshop.base_ref,),
            prompts=location,
            generation=Generation(samples_per_prompt=cell.base_samples, max_new_tokens=cell.max_new_tokens),
            seed=BASE_SEED,
        )
    )
    made = workshop.run(
        EvaluateSpec(
            policy=policy,
            reference=workshop.base_ref,
            reward_models=(reward_model,),
            prompts=location,
            generation=Generation(samples_per_prompt=NEW_ANSWERS, max_new_tokens=cell.max_new_tokens),
            seed=seed_of(cell, number, EVALUATION),
        )
    )
    proxy = workshop.run(
        measure.ScoreSpec(
            samples=base_made.location,
            prompts=location,
            reward_models=(reward_model,),
            per_prompt=measure.BASE_ANSWERS,
        ),
        measure.score,
    )
    seconds["evaluate"], seconds["score_base"] = made.seconds, proxy.seconds
    new = by_prompt(rows, measure.read_completions(workshop.store.resolve(made.location)))
    base = by_prompt(rows, measure.read_completions(workshop.store.resolve(base_made.location)))
    preference = PREFERENCES[cell.preference]
    found = {}
    for kind in measure.kinds_of(new):
        metrics = made.metrics[f"split={kind}"]
        base_kind = measure.of_kind(base, kind)
        kl = metrics["eval_objective/kl_k3"]
        best, n = measure.best_of_n_at(preference, base_kind, kl)
        found[kind] = measure.compare(preference, measure.of_kind(new, kind), base_kind) | {
            "proxy": metrics["eval_objective/scores"],
            "base_proxy": proxy.result["scores"][kind],
            "kl": metrics["eval_objective/kl"],
            "kl_k3": kl,
            "tokens": metrics["eval_length"],
            "base_tokens": measure.mean_of(base_kind, lambda completion: completion.n_tokens),
            "finished": metrics["eval_finished"],
            "base_finished": measure.mean_of(base_kind, lambda completion: completion.finish_reason == "eos"),
            "best_of_n_true": best,
            "best_of_n": n,
        }
        if before is not None:
            against = measure.compare(preference, measure.of_kind(new, kind), measure.of_kind(before, kind))
            found[kind]["shares_against_previous"] = against["win_shares"]
    return found, new

"""Measurements of a policy: win rate under the hidden preference, reward model's scores, best-of-n at equal KL."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from app.artifacts import ArtifactStore
from app.domain.yardstick import best_of_n_kl
from app.rows import PromptRow
from app.simulation.preference import Score
from app.simulation.statistics import mean_score, win_shares
from app.specs import Spec
from benchmarks.loop.labels import Texts
from benchmarks.loop.prompts import KINDS, question
from trainer.batching.data import read_prompts
from trainer.evaluation.figures import reward_models_scorer
from trainer.recipes.sample import Completion
from trainer.reporting import Reporter

BASE_ANSWERS = 4  # the base's answers per prompt that each new answer is compared with


class ScoreSpec(Spec):
    """Score existing samples with a reward model."""

    kind: Literal["score"] = "score"
    samples: str
    prompts: str
    reward_models: tuple[str, ...]
    per_prompt: int
    max_length: int = 1024


class Said(NamedTuple):
    """A sample as input of reward models."""

    row: PromptRow
    text: str


class ScoreResult(NamedTuple):
    """Mean scores by kind of prompt."""

    scores: dict[str, float]


def score(spec: ScoreSpec, store: ArtifactStore, _reporter: Reporter, _folder: Path) -> ScoreResult:
    """Return the mean score over the first `per_prompt` samples of each prompt, by kind of prompt."""
    rows = {row.id: row for row in read_prompts(store.resolve(spec.prompts))}
    said = [
        Said(rows[completion.prompt_id], completion.text)
        for completion in read_completions(store.resolve(spec.samples))
        if completion.sample_index < spec.per_prompt and completion.prompt_id in rows
    ]
    folders = [store.resolve(location) for location in spec.reward_models]
    scores = reward_models_scorer(folders, spec.max_length)(said).numpy()  # type: ignore[arg-type]
    kinds = np.array([each.row.slices["split"] for each in said])
    return ScoreResult({kind: float(scores[kinds == kind].mean()) for kind in sorted(set(kinds))})


def read_completions(folder: Path) -> list[Completion]:
    """Read the samples from a run's folder."""
    lines = (folder / "completions.jsonl").read_text().splitlines()
    return [Completion(**json.loads(line)) for line in lines]


def of_kind(texts: Sequence[Texts], kind: str) -> list[Texts]:
    """Return the prompts of one kind with their samples."""
    return [each for each in texts if each.row.slices["split"] == kind]


def compare(preference: Score, new: Sequence[Texts], base: Sequence[Texts]) -> dict[str, Any]:
    """Return win shares by prompt and mean true scores under a hidden preference; both sides have the same prompts.

    Every new answer is compared with each of the base's first `BASE_ANSWERS` answers.
    """
    questions = {each.row.id: question(each.row) for each in new}
    mine = {each.row.id: [completion.text for completion in each.completions] for each in new}
    theirs = {each.row.id: [completion.text for completion in each.completions[:BASE_ANSWERS]] for each in base}
    shares = win_shares(preference, questions, mine, theirs)
    return {
        "win_shares": [round(share, 4) for share in shares.values()],
        "true": mean_score(preference, questions, mine),
        "base_true": mean_score(preference, questions, theirs),
    }


def best_of_n_at(preference: Score, base: Sequence[Texts], kl: float) -> tuple[float, float]:
    """Return (true score, n) of the base's best of n under the true score, with n chosen to match this KL.

    The KL of best-of-n is ln n - (n - 1) / n. n is not an integer: scores are interpolated. If the samples are too few
    for this KL, the largest n is used.
    """
    columns = [
        sorted(preference(question(each.row), completion.text) for completion in each.completions) for each in base
    ]
    most = min(map(len, columns))
    values = [float(np.mean([expected_best(column, n) for column in columns])) for n in range(1, most + 1)]
    n = float(np.interp(kl, [best_of_n_kl(m) for m in range(1, most + 1)], np.arange(1, most + 1)))
    return float(np.interp(n, np.arange(1, most + 1), values)), n


def expected_best(ordered: Sequence[float], n: int) -> float:
    """Return the mean of the largest of n scores over all choices of n from these (ascending), without replacement."""
    ways = [math.comb(i, n - 1) for i in range(len(ordered))]  # number of choices in which the i-th is the largest
    return sum(way * value for way, value in zip(ways, ordered, strict=True)) / math.comb(len(ordered), n)


def kinds_of(texts: Sequence[Texts]) -> list[str]:
    """Return the kinds of prompts that occur, in their usual order."""
    there = {each.row.slices["split"] for each in texts}
    return [kind for kind in KINDS if kind in there]


def mean_of(texts: Sequence[Texts], value: Callable[[Completion], float]) -> float:
    """Return the mean of a value over all samples."""
    return float(np.mean([value(completion) for each in texts for completion in each.completions]))


def score_differences(texts: Sequence[Texts], per_model: int) -> list[float]:
    """Return for each prompt the reward model's mean score of the first `per_model` samples minus that of the rest."""
    differences = []
    for each in texts:
        scores = [np.mean(completion.sampling["reward"]["heads"]) for completion in each.completions]
        differences.append(float(np.mean(scores[:per_model]) - np.mean(scores[per_model:])))
    return differences

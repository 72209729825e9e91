"""`python -m benchmarks.loop.selection`: find out which pairs teach a reward model most per judgment.

Half of the comparisons are random pairs. A reward model learns from them. Then a rule uses this reward model's scores
to choose the other half, as in a project's second round. A reward model trained on both halves is measured on other
answers to the same prompts: how many pairs it orders correctly, and how much better its favorite of 12 answers is than
the mean. All rules get the same answers, first halves and labelers, so each is compared with `random` within a seed.

The frozen trunk's features are computed once and heads are fitted in seconds, so many seeds can be played. The last
lines are for scripts: `selection RULE PREFERENCE COMPARISONS accuracy x low high lift x low high`. For other rules than
`random`, the figures are differences from `random`.
"""

import argparse
import itertools
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from app.artifacts import ArtifactStore
from app.domain.intervals import mean_interval
from app.errors import PrefloopError
from app.rows import PairRow
from app.simulation.preference import PREFERENCES, Score
from app.specs import Generation, RewardSpec, SampleSpec
from benchmarks.loop import measure, prompts
from benchmarks.loop.__main__ import STORE
from benchmarks.loop.apart import quiet, say
from benchmarks.loop.cells import TUNING, Labels
from benchmarks.loop.labels import Crew, Texts, by_prompt, choose
from benchmarks.loop.prompts import question
from benchmarks.loop.workshop import Workshop
from trainer.batching.chat import ChatEncoder, TokenSequence
from trainer.batching.data import encode_pairs
from trainer.models.default_model import fetch_model
from trainer.models.loading import load_tokenizer, resolve, seed_everything, working_dtype
from trainer.recipes.reward import response_features
from trainer.reporting import ConsoleReporter
from trainer.reward import head_fitting
from trainer.reward.cross_fitting import folds_of
from trainer.reward.model import frozen_reward_model
from trainer.reward.network import head_names
from trainer.reward.objective import Element, RewardObjective, elements_of, targets_of
from trainer.reward.rows import usable

RULES = tuple(rule for rule in get_args(Labels.model_fields["selection"].annotation) if rule != "random")
FIRST, SECOND, OTHER = 8, 12, 12  # answers per prompt: for the first half, for the second half, for measuring
SAMPLES_SEED = 424_243
NOISE = 0.1
DECIDED = 0.15  # minimum difference of hidden scores for a labeler to name a winner


class Measured(NamedTuple):
    """Quality of a reward model: the share of decided pairs that it orders correctly, and the gain of its favorites."""

    accuracy: float
    lift: float


class Trunk:
    """A frozen trunk with the features of all answers; heads are fitted for each set of comparisons."""

    def __init__(self, workshop: Workshop, texts: Sequence[Texts]) -> None:
        backbone = resolve(workshop.store, workshop.base_ref)
        self.spec = RewardSpec(backbone=workshop.base_ref, snapshot="none")
        tokenizer = load_tokenizer(backbone)
        self.encoder = ChatEncoder(tokenizer, self.spec.max_length)
        seed_everything(self.spec.seed)
        self.dtype = working_dtype(self.spec.optimiser.precision, backbone)
        self.base = backbone.base
        known = {_key(sequence): sequence for sequence in self._sequences(texts)}
        elements = [Element((sequence,), (), ()) for sequence in known.values()]
        model = frozen_reward_model(self.base, head_names(1, ()), self.dtype, 1)
        read = response_features(model, tokenizer.pad_token_id, ConsoleReporter(stream=None), elements)
        self.features = dict(zip(known, read, strict=True))

    def rewards(self, rows: Sequence[PairRow], texts: Sequence[Texts], seed: int) -> Tensor:
        """Fit heads to comparisons; return rewards (A, M) of all answers in units of members' standard deviations."""
        spec = self.spec.model_copy(update={"seed": seed})
        pairs, _, _ = usable(spec, encode_pairs(rows, self.encoder))
        elements = elements_of(pairs)
        folds, _ = folds_of(spec, pairs, elements)
        model = frozen_reward_model(self.base, head_names(spec.ensemble, ()), self.dtype, folds.members)
        objective = RewardObjective(model, spec.ties, 0.0)
        features = self._features(sequence for element in elements for sequence in element.sequences)
        targets = [
            targets_of(pairs, elements, spec.model_copy(update={"seed": seed + member}))
            for member in range(folds.members)
        ]
        head_fitting.fit(objective, spec, folds, elements, range(len(elements)), features, targets)
        heads = torch.cat([head.weight for head in model.scores]).detach()
        own = features @ heads.T
        return (self._features(self._sequences(texts)) @ heads.T - own.mean(0)) / own.std(0)

    def _sequences(self, texts: Sequence[Texts]) -> Iterator[TokenSequence]:
        for each in texts:
            for answer in each.completions:
                fitted = self.encoder.fit(each.row.messages, [self.encoder.completion(answer.text)])
                assert fitted is not None, "the benchmark's prompts and answers are short"
                yield fitted.sequences[0]

    def _features(self, sequences: Iterable[TokenSequence]) -> Tensor:
        return torch.stack([self.features[_key(sequence)] for sequence in sequences])


def _key(sequence: TokenSequence) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(sequence.prompt), tuple(sequence.completion)


def play(
    trunk: Trunk, texts: Sequence[Texts], preference: str, count: int, seed: int, rules: Sequence[str]
) -> dict[str, Measured]:
    """Return the quality of each rule's reward model after `count` comparisons, for one seed."""
    score, labels = PREFERENCES[preference], Labels(overlap=1.0, heldout_share=0.0)
    dealt = [deal(each, seed) for each in texts]
    first, second, other = ([each[part] for each in dealt] for part in range(3))
    crew = Crew(score, NOISE, labels, seed)
    rows = crew.judge(choose(first, count // 2, "random", seed), "train", 1)
    scored = with_heads(second, trunk.rewards(rows, second, seed))
    found = {}
    for rule in ("random", *rules):
        crew = Crew(score, NOISE, labels, seed + 1_000)  # the same for every rule
        more = crew.judge(choose(scored, count - count // 2, rule, seed), "train", len(rows) + 1)
        found[rule] = measured(score, other, trunk.rewards([*rows, *more], other, seed).mean(-1))
    return found


def deal(texts: Texts, seed: int) -> tuple[Texts, Texts, Texts]:
    """Split a prompt's answers into those for the first half, for the second half, and for measuring."""
    order = random.Random(f"{seed} {texts.row.id}").sample(list(texts.completions), len(texts.completions))
    ends = (0, FIRST, FIRST + SECOND, FIRST + SECOND + OTHER)
    first, second, other = (texts._replace(completions=order[a:b]) for a, b in pairwise(ends))
    return first, second, other


def with_heads(texts: Sequence[Texts], rewards: Tensor) -> list[Texts]:
    """Return the answers with each member's rewards (A, M), in the form of stored samples."""
    said = iter(rewards.tolist())
    return [
        each._replace(
            completions=[one._replace(sampling={"reward": {"heads": next(said)}}) for one in each.completions]
        )
        for each in texts
    ]


def measured(score: Score, texts: Sequence[Texts], rewards: Tensor) -> Measured:
    """Measure rewards (A,) by the hidden score: how well they order answers, and the gain of each prompt's favorite.

    The gain is in standard deviations within prompts.
    """
    right, gains, variances = [], [], []
    for each, said in zip(texts, rewards.split([len(each.completions) for each in texts]), strict=True):
        true = torch.tensor([score(question(each.row), one.text) for one in each.completions])
        apart, by_model = true[:, None] - true[None, :], said[:, None] - said[None, :]
        decided = (apart.abs() >= DECIDED).triu(1)
        right += ((apart * by_model > 0).double() + 0.5 * (by_model == 0))[decided].tolist()
        gains.append(float(true[said.argmax()] - true.mean()))
        variances.append(float(true.var()))
    return Measured(fmean(right), fmean(gains) / fmean(variances) ** 0.5)


def main(arguments: list[str] | None = None) -> list[str]:
    """Play all seeds and report; return the last lines."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loop.selection", description=__doc__)
    add = parser.add_argument
    add("--rules", nargs="+", choices=RULES, default=RULES)
    add("--preferences", nargs="+", choices=PREFERENCES, default=TUNING)
    add("--comparisons", nargs="+", type=int, default=[150, 300])
    add("--seeds", type=int, default=10)
    add("--store", type=Path, default=STORE, help="folder of the models and all outputs")
    add("--model", default=None, help="folder or hub name of the base; default: the service's default model")
    args = parser.parse_args(arguments)
    base = fetch_model(ArtifactStore(args.store.absolute()), **({"name": args.model} if args.model else {}), say=say)
    workshop = Workshop(args.store, base, say)
    rows = prompts.load().train
    spec = SampleSpec(
        models=(workshop.base_ref,),
        prompts=prompts.write(workshop.store, rows),
        generation=Generation(samples_per_prompt=FIRST + SECOND + OTHER, max_new_tokens=64),
        seed=SAMPLES_SEED,
    )
    texts = by_prompt(rows, measure.read_completions(workshop.store.resolve(workshop.run(spec).location)))
    trunk = Trunk(workshop, texts)
    lines = []
    for preference, count in itertools.product(args.preferences, args.comparisons):
        seeds = []
        for seed in range(args.seeds):
            seeds.append(play(trunk, texts, preference, count, seed, args.rules))
            say(
                f"{preference} {count} seed {seed}: " + ", ".join(f"{k} {v.accuracy:.3f}" for k, v in seeds[-1].items())
            )
        for rule in ("random", *args.rules):
            lines.append(f"selection {rule} {preference} {count} {figures(rule, seeds)}")
    print("\n".join(lines))
    return lines


def figures(rule: str, seeds: Sequence[dict[str, Measured]]) -> str:
    """Format accuracy and lift with 95% intervals over seeds; for a rule, the differences from `random`."""
    said = []
    for place, name in enumerate(Measured._fields):
        values = [each[rule][place] - (each["random"][place] if rule != "random" else 0.0) for each in seeds]
        found = mean_interval(values)
        said.append(f"{name} {fmean(values):.3f}" + (f" {found.low:.3f} {found.high:.3f}" if found else ""))
    return " ".join(said)


if __name__ == "__main__":
    quiet()
    try:
        main()
    except PrefloopError as error:
        print(f"{error.title}: {error.message} {error.advice or ''}", file=sys.stderr)
        sys.exit(1)

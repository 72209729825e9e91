"""Judgments of a round: choose pairs of samples, let simulated labelers judge them, and compute the consensus."""

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from app.domain.consensus import majority, side
from app.domain.pairing import Choice, Sample, choose_pairs
from app.rows import PairRow, PromptRow
from app.simulation.preference import Score, SimulatedLabeler
from benchmarks.loop.cells import Labels
from benchmarks.loop.prompts import question
from trainer.recipes.sample import Completion

STRENGTHS = 3  # steps on each side of the starter project's scale


class Texts(NamedTuple):
    """A prompt and its samples."""

    row: PromptRow
    completions: Sequence[Completion]


def comparisons(judgments: int, labels: Labels) -> tuple[int, int]:
    """Return the numbers of comparisons on train and held-out prompts for a budget of judgments."""
    total = int(judgments / labels.overlap + 1e-9)
    heldout = round(total * labels.heldout_share)
    return total - heldout, heldout


def samples_needed(pairs: int, prompts: int, least: int) -> int:
    """Return samples per prompt: `least`, doubled until there are 1.5 times the pairs, because some texts are equal."""
    k = least
    while k < 64 and k * (k - 1) / 2 * prompts < 1.5 * pairs:
        k *= 2
    return k


def choose(texts: Sequence[Texts], count: int, selection: str, seed: int) -> list[tuple[Texts, Choice]]:
    """Choose `count` pairs spread evenly over the prompts, or all pairs if there are fewer.

    The seed decides which prompts have one more pair. If a prompt has too few pairs because its samples are equal,
    other prompts give more.
    """
    order = list(range(len(texts)))
    random.Random(seed).shuffle(order)
    limits = dict.fromkeys(order, 0)
    chosen: dict[int, list[Choice]] = {i: [] for i in order}
    exhausted: set[int] = set()
    while (missing := count - sum(map(len, chosen.values()))) > 0 and len(exhausted) < len(texts):
        able = [i for i in order if i not in exhausted]
        for place, i in enumerate(able):
            limits[i] += missing // len(able) + (place < missing % len(able))
            # The same formula as in the service, which uses the id of the sampling run in place of `seed`.
            seeded = seed * 1_000_003 + texts[i].row.id
            samples = [_sample(completion) for completion in texts[i].completions]
            chosen[i] = choose_pairs(samples, [], limits[i], {selection: 1.0}, seeded) if limits[i] else []
            if len(chosen[i]) < limits[i]:
                exhausted.add(i)
    return [(texts[i], choice) for i in sorted(order) for choice in chosen[i]]


def _sample(completion: Completion) -> Sample:
    heads = completion.sampling.get("reward", {}).get("heads", ())
    return Sample(completion.sample_index, completion.text, tuple(heads))


class Crew:
    """Labelers with the same hidden preference. Each makes their own errors, which depend only on the seed."""

    def __init__(self, score: Score, noise: float, labels: Labels, seed: int) -> None:
        self.score, self.overlap = score, labels.overlap
        count = max(labels.labelers, int(-(-labels.overlap // 1)))
        self.labelers = [
            SimulatedLabeler(score, noise, labels.position_bias, random.Random(f"{seed}-{n}")) for n in range(count)
        ]
        self.sides = random.Random(f"{seed}-sides")
        self.judged = 0

    def judge(self, pairs: Sequence[tuple[Texts, Choice]], split: str, first_id: int) -> list[PairRow]:
        """Judge pairs and return the trainer's rows, with ids from `first_id` on."""
        return [self._row(first_id + i, i, *pair, split) for i, pair in enumerate(pairs)]

    def _row(self, comparison_id: int, number: int, texts: Texts, choice: Choice, split: str) -> PairRow:
        by_index = {completion.sample_index: completion for completion in texts.completions}
        a, b = (by_index[index] for index in choice.ids)
        asked = question(texts.row)
        preferences = []
        wanted = int((number + 1) * self.overlap + 1e-9) - int(number * self.overlap + 1e-9)
        for labeler in self.sides.sample(self.labelers, wanted):
            if self.sides.random() < 0.5:
                preferences.append(labeler.judge(asked, a.text, b.text, STRENGTHS))
            else:
                preferences.append(-labeler.judge(asked, b.text, a.text, STRENGTHS))
        self.judged += wanted
        agreed = majority(preferences).rounded()
        sides = [side(preference) for preference in preferences]
        winner = agreed.winner
        return PairRow(
            comparison_id=comparison_id,
            prompt_id=texts.row.id,
            messages=texts.row.messages,
            response_a=a.text,
            response_b=b.text,
            finished_a=a.finish_reason == "eos",
            finished_b=b.finish_reason == "eos",
            preference=agreed.preference,
            p_b=agreed.p_b,
            p_tie=agreed.p_tie,
            agreement=sides.count(winner) / len(sides),
            opposed=sides.count(-winner) / len(sides) if winner else None,
            weight=agreed.weight,
            split=split,  # type: ignore[arg-type]
            slices=texts.row.slices,
        )


def by_prompt(rows: Sequence[PromptRow], completions: Sequence[Completion]) -> list[Texts]:
    """Return each prompt's samples, in the order of the rows and the samples' indices."""
    found: Mapping[int, list[Completion]] = defaultdict(list)
    for completion in completions:
        found[completion.prompt_id].append(completion)
    return [Texts(row, sorted(found[row.id], key=lambda each: each.sample_index)) for row in rows]

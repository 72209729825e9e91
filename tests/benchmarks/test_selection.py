"""Which pairs teach most: how answers are split, and how a reward model's order of them is measured."""

import torch

from app.rows import PromptRow
from benchmarks.loop.labels import Texts
from benchmarks.loop.selection import FIRST, OTHER, SECOND, deal, figures, measured, with_heads
from benchmarks.loop.selection import Measured as Worth
from trainer.recipes.sample import Completion


def answers(count: int, prompt: int = 1) -> Texts:
    row = PromptRow(id=prompt, messages=({"role": "user", "content": "?"},), slices={})
    return Texts(row, [Completion(prompt, i, f"{prompt} {i}", "eos", 1, i, {}) for i in range(count)])


def test_no_answer_is_compared_and_measured_on() -> None:
    everything = answers(FIRST + SECOND + OTHER)
    parts = deal(everything, seed=3)
    assert [len(part.completions) for part in parts] == [FIRST, SECOND, OTHER]
    assert sorted(one.sample_index for part in parts for one in part.completions) == list(
        range(len(everything.completions))
    )
    assert parts != deal(everything, seed=4)


def test_a_reward_model_is_worth_what_its_order_and_its_favourites_are() -> None:
    # True scores 0, 1, 2 and 0, 0.1, 3: pairs that differ by less than 0.15 have no order.
    true = {"1 0": 0.0, "1 1": 1.0, "1 2": 2.0, "2 0": 0.0, "2 1": 0.1, "2 2": 3.0}
    rewards = torch.tensor([0.0, 2.0, 1.0, 5.0, 5.0, 5.0])
    found = measured(lambda _question, text: true[text], [answers(3), answers(3, 2)], rewards)
    # Right: 0 < 1 and 0 < 2 of the first prompt, but not 1 < 2. Both pairs of the second are undecided: one half each.
    assert found.accuracy == (1 + 1 + 0 + 0.5 + 0.5) / 5
    # The first favourite is the mean, 1; the second, the first of equals, lies 31 / 30 below its mean of 31 / 30.
    variances = (1.0, ((0 - 31 / 30) ** 2 + (0.1 - 31 / 30) ** 2 + (3 - 31 / 30) ** 2) / 2)
    torch.testing.assert_close(found.lift, (0 - 31 / 30) / 2 / (sum(variances) / 2) ** 0.5, rtol=1e-6, atol=1e-6)


def test_rules_are_told_as_differences_from_random_within_seeds() -> None:
    seeds = [{"random": Worth(0.5 + 0.1 * n, 1.0), "drts": Worth(0.6 + 0.1 * n, 0.5)} for n in range(2)]
    assert figures("random", seeds) == "accuracy 0.550 lift 1.000"  # two seeds are too few for an interval
    assert figures("drts", seeds) == "accuracy 0.100 lift -0.500"


def test_answers_carry_what_each_member_says() -> None:
    scored = with_heads([answers(2), answers(1, 2)], torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    said = [one.sampling["reward"]["heads"] for each in scored for one in each.completions]
    assert said == [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]

"""The alternative annotator test against the published procedure, computed with scipy and by hand."""

import random

import numpy as np
import pytest
from scipy import stats

from app.domain.alternative_annotator import Said, benjamini_yekutieli, beside_people

EPSILON, Q = 0.15, 0.05


def crowd(judge_right: float, people_right: float, *, items: int = 60, seed: int = 0) -> tuple[dict[int, int], list]:
    """Return five labelers and a judge who give the true answer with these probabilities, otherwise a random one."""
    chance = random.Random(seed)

    def says(truth: int, right: float) -> int:
        return truth if chance.random() < right else chance.choice((-1, 0, 1))

    truths = {item: chance.choice((-1, 1)) for item in range(items)}
    said = [Said(item, who, says(truth, people_right)) for item, truth in truths.items() for who in range(5)]
    return {item: says(truth, judge_right) for item, truth in truths.items()}, said


@pytest.mark.parametrize(("judge_right", "passes"), [(0.95, True), (0.7, True), (0.0, False)])
def test_it_is_the_published_procedure(judge_right: float, passes: bool) -> None:
    judged, said = crowd(judge_right, 0.7)
    found = beside_people(judged, said, EPSILON, Q)

    # Section 3 of the paper with arrays: scores of alignment with the others, indicators, a one-sided paired t-test.
    table = np.array([[s.side for s in said if s.item == item] for item in range(60)])
    machine = np.array([judged[item] for item in range(60)])
    p_values, advantages = [], []
    for j in range(5):
        others = np.delete(table, j, axis=1)
        s_machine, s_human = (others == machine[:, None]).mean(1), (others == table[:, [j]]).mean(1)
        w_machine, w_human = (s_machine >= s_human).astype(float), (s_human >= s_machine).astype(float)
        p_values.append(stats.ttest_1samp(w_human - w_machine, EPSILON, alternative="less").pvalue)
        advantages.append(w_machine.mean())
    adjusted = stats.false_discovery_control(p_values, method="by")
    assert [each.p for each in found.beside] == pytest.approx(p_values)
    assert [each.is_won for each in found.beside] == (adjusted <= Q).tolist()
    assert found.omega == (adjusted <= Q).mean()
    assert found.advantage == pytest.approx(np.mean(advantages))
    assert found.passed is passes
    assert (found.reason == "") is passes


def test_by_hand() -> None:
    """Three labelers always say A on 40 items; a judge says A on 38 of them. Against each, d is 1 on two items
    and 0 on 38, mean 0.05, variance (40 * 0.05 - 40 * 0.05**2) / 39 = 0.0487; t = (0.05 - 0.15) / sqrt(0.0487 / 40)
    = -2.865, and p = 0.0033 of 39 degrees of freedom, below 0.05 / (1 + 1/2 + 1/3)."""
    said = [Said(item, who, -1) for item in range(40) for who in (7, 8, 9)]
    found = beside_people(dict.fromkeys(range(38), -1) | {38: 1, 39: 0}, said, EPSILON, Q)
    assert [(each.labeler, each.items, each.judge, each.human) for each in found.beside] == [
        (who, 40, 0.95, 1.0) for who in (7, 8, 9)
    ]
    assert [round(each.p, 4) for each in found.beside] == [0.0033] * 3
    assert (found.omega, found.passed) == (1.0, True)
    # If labelers never differ, nothing is due to chance.
    assert beside_people(dict.fromkeys(range(40), -1), said).omega == 1.0
    assert beside_people(dict.fromkeys(range(40), 1), said).omega == 0.0


def test_whoever_shares_too_little_is_not_tested_and_too_few_admit_nobody() -> None:
    judged, said = crowd(0.9, 0.7)
    scarce = [each for each in said if each.labeler < 3 or each.item < 29]
    found = beside_people(judged, scarce)
    assert [each.labeler for each in found.beside] == [0, 1, 2]
    assert found.few == {3: 29, 4: 29}
    two = beside_people(judged, [each for each in said if each.labeler < 2])
    assert (two.passed, two.omega, two.beside) == (False, None, [])
    assert two.reason.endswith("there are 2.")
    # An item that nobody else judged has no information about a labeler.
    assert beside_people(judged, [each for each in said if each.labeler == 0]).few == {}


def test_benjamini_and_yekutieli_step_up() -> None:
    """m = 4: the thresholds are k * 0.05 / (4 * 25/12) = 0.006 k. The third p-value saves the first two."""
    assert benjamini_yekutieli([0.016, 0.5, 0.007, 0.0125], 0.05) == [True, False, True, True]
    assert benjamini_yekutieli([0.007, 0.5], 0.001) == [False, False]

"""The estimate of a round, by arithmetic."""

import pytest

from app.domain.costs import KNOWN_PARAMETERS, PROGRAM, STARTING, Data, Plan, Rate, Shape, Work, cost, memory_of, works

DATA = Data(pairs=100, train_prompts=60, evaluation_prompts=20, queue_prompts=80, prompt_tokens=30, response_tokens=50)
PAIR = 30 + 2 * 50


def by_kind(plan: Plan, **how: bool) -> dict[str, Work]:
    return {work.kind: work for work in works(plan, DATA, **how)}


def test_the_tokens_of_every_run() -> None:
    found = by_kind(Plan("dpo", epochs=3, reward_epochs=2, reward_members=4, queue_prompts=100, queue_samples=5))
    assert list(found) == ["reward", "dpo", "sample", "evaluate"]
    assert found["reward"] == Work("reward", trained=100 * PAIR * 2 * 3)  # each pair is in one member's fold
    assert by_kind(Plan("dpo", reward_epochs=2))["reward"] == Work("reward", trained=100 * PAIR * 2)
    assert found["dpo"] == Work("dpo", trained=100 * PAIR * 3, read=100 * PAIR)
    assert found["sample"] == Work("sample", sampled=80 * 5 * 50)  # there are only 80 prompts
    # Two policies answer each of 20 prompts twice. 4 reward models score both; policy and reference read new answers.
    assert found["evaluate"] == Work("evaluate", sampled=20 * 2 * 50 * 2, read=(20 * 2 * 50 + 20 * 30) * (2 * 4 + 2))
    tuned = by_kind(Plan("sft", epochs=2), trains_reward=False, evaluates=False)
    assert list(tuned) == ["sft", "sample"]
    assert tuned["sft"] == Work("sft", trained=100 * (30 + 50) * 2)


def test_the_tokens_of_methods_in_turns() -> None:
    plan = Plan("on_policy_dpo", turns=2, prompts_per_turn=40, answers=16, pairs=4, human_epochs=2, reward_members=3)
    measured = 3 * 48 * 2 * 50  # after the comparisons and after each turn
    found = by_kind(plan)["on_policy_dpo"]
    assert found.trained == 100 * PAIR * 2 + 2 * 40 * 4 * PAIR
    assert found.sampled == 2 * 40 * 16 * 50 + measured
    assert found.read == 2 * ((40 * 16 * 50 + 40 * 30) * 3 + 40 * 4 * PAIR) + measured * 5 + 100 * PAIR
    mixed = by_kind(plan._replace(human_share=0.2))["on_policy_dpo"]  # 40 beside the 160
    assert mixed.trained - found.trained == 2 * 40 * PAIR
    half = by_kind(plan._replace(human_share=0.5))["on_policy_dpo"]  # there are only 100
    assert half.trained - found.trained == 2 * 100 * PAIR
    best = by_kind(Plan("best_of_n", epochs=2, turns=1, prompts_per_turn=500, answers=8, best=2))["best_of_n"]
    assert best.trained == 60 * 2 * 80 * 2  # there are only 60 prompts
    assert best.sampled == 60 * 8 * 50 + 48 * 2 * 50


def test_the_tokens_of_rollouts() -> None:
    found = by_kind(Plan("grpo", epochs=2, answers=8, episodes=512, reward_members=2))["grpo"]
    group = 30 / 8 + 50  # the prompt is read once for its answers
    assert found == Work("grpo", trained=512 * group * 2, sampled=512 * 50, read=512 * group * 4)


def test_default_rates_are_those_of_the_default_model_and_grow_with_the_model() -> None:
    plan = [Work("dpo", trained=30_000), Work("sample", sampled=35_000), Work("evaluate", sampled=350, read=900)]
    assert [part.seconds for part in cost(plan, {}, None, None).parts] == [110, 110, 12]
    twice = Shape(2 * KNOWN_PARAMETERS, 1, 1, 1, 1)
    assert [part.seconds for part in cost(plan, {}, twice, None).parts] == [210, 210, 14]
    assert STARTING == 10


def test_what_was_measured_goes_before() -> None:
    plan = [Work("dpo", trained=20_000), Work("sample", sampled=3_000)]
    rates = {"dpo": Rate(400, "as round 3", 3_000_000), "sample": Rate(100, "as round 3")}
    found = cost(plan, rates, None, 7_000_000)
    assert [(part.kind, part.seconds, part.source) for part in found.parts] == [
        ("dpo", 50, "as round 3"),
        ("sample", 30, "as round 3"),
    ]
    assert found.seconds == 80
    assert (found.memory, found.memory_source) == (3_000_000, "as earlier rounds took")
    # A kind that has not run yet may need more memory.
    found = cost([Work("reward", trained=1), *plan], rates, None, 7_000_000)
    assert (found.memory, found.memory_source) == (7_000_000, "from the model's size")


@pytest.mark.parametrize(("models", "full_weights", "copies"), [(1, False, 1), (3, False, 3), (2, True, 5)])
def test_memory(models: int, full_weights: bool, copies: int) -> None:
    shape = Shape(parameters=1_000_000, layers=2, hidden=8, intermediate=32, vocabulary=100)
    found = memory_of(shape, models=models, full_weights=full_weights, tokens=10)
    assert found == PROGRAM + 4 * 1_000_000 * copies + 10 * 2 * (16 * 8 + 4 * 32) * 4 + 5 * 100 * 12


def test_memory_of_the_default_model_is_about_what_was_measured() -> None:
    """Full-weight DPO with its reference took 5.4 GiB (docs/training.md, "Measured")."""
    shape = Shape(KNOWN_PARAMETERS, layers=30, hidden=576, intermediate=1536, vocabulary=49_152)
    assert memory_of(shape, models=2, full_weights=True, tokens=1024) == pytest.approx(5.4 * 2**30, rel=0.15)

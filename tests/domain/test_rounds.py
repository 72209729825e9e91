"""The state machine of a round, according to its table."""

from typing import get_args

import pytest

from app.domain.rounds import ACTIVE, FINAL, STAGES, ImpossibleTransition, after, plan, run_kind, run_seed, stage_of
from app.models.round import ALGORITHMS, ROUND_STATES, RUN_KINDS
from app.rounds.forms import Algorithm


@pytest.mark.parametrize(
    ("algorithm", "is_evaluated", "expected"),
    [
        ("dpo", False, ["freezing", "reward", "policy", "sampling", "evaluating", "done"]),
        ("ppo", True, ["freezing", "reward", "policy", "sampling", "evaluating", "done"]),
        ("sft", True, ["freezing", "policy", "sampling", "evaluating", "done"]),
        ("sft", False, ["freezing", "policy", "sampling", "done"]),
    ],
)
def test_a_round_passes_through_every_stage_of_its_plan_in_order(
    algorithm: str, is_evaluated: bool, expected: list[str]
) -> None:
    stages = plan(algorithm, is_evaluated)
    seen = [after("freezing", "started", stages)]
    while seen[-1] != "done":
        seen.append(after(seen[-1], "succeeded", stages))
    assert seen == expected


@pytest.mark.parametrize("state", ACTIVE)
@pytest.mark.parametrize("event", ["failed", "cancelled"])
def test_every_active_state_can_fail_and_be_cancelled(state: str, event: str) -> None:
    assert after(state, event) == event  # type: ignore[arg-type]


@pytest.mark.parametrize("state", FINAL)
@pytest.mark.parametrize("event", ["started", "succeeded", "failed", "cancelled"])
def test_nothing_leads_out_of_a_final_state(state: str, event: str) -> None:
    with pytest.raises(ImpossibleTransition, match=state):
        after(state, event)  # type: ignore[arg-type]


@pytest.mark.parametrize("state", STAGES)
def test_a_run_that_starts_again_stays_in_its_stage(state: str) -> None:
    assert after(state, "started") == state


def test_every_stage_has_its_run_and_every_run_its_stage() -> None:
    for algorithm in ("dpo", "ppo"):
        kinds = [run_kind(stage, algorithm) for stage in STAGES]
        assert kinds == ["freeze", "reward", algorithm, "sample", "evaluate"]
        assert [stage_of(kind) for kind in kinds if kind] == list(STAGES)
        assert {kind for kind in kinds if kind} <= set(RUN_KINDS)
    assert stage_of("sft") == "policy"
    assert [run_kind(state, "dpo") for state in FINAL] == [None, None, None]


def test_the_table_and_the_database_know_the_same_states() -> None:
    assert {*ACTIVE, *FINAL} == set(ROUND_STATES)
    assert set(ALGORITHMS) == set(get_args(Algorithm))


def test_no_two_rounds_kinds_or_settings_share_a_seed() -> None:
    numbers = (0, 1, 2, 3, 11, 12, 111, 1_000_003)
    kinds = (*RUN_KINDS, "outside rounds")
    seeds = [run_seed(seed, kind, number) for seed in numbers for kind in kinds for number in numbers]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)

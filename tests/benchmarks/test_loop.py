"""The loop's benchmark: a whole cell with a tiny model, killed halfway and resumed; and its arithmetic by hand."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from app.errors import InvalidInput
from app.rows import PromptRow
from app.simulation.preference import PREFERENCES
from app.simulation.statistics import WinRate, interval
from app.specs import OnPolicyDPOSpec
from benchmarks.loop import measure, methods, prompts, report
from benchmarks.loop.__main__ import main, whole
from benchmarks.loop.cells import FINAL_ONLY, TUNING, Cell, Labels, grid
from benchmarks.loop.labels import Crew, Texts, by_prompt, choose, comparisons, samples_needed
from benchmarks.loop.measure import best_of_n_at, expected_best
from benchmarks.loop.play import BASE_SEED, CREW, EVALUATION, LABELING, POLICY, REWARD, VERDICT, play, seed_of
from benchmarks.loop.report import Group, budget_for, judgments_saved
from benchmarks.loop.workshop import Workshop, recipe_of
from tests.trainer.conftest import tiny_model  # noqa: F401
from trainer.recipes import dpo
from trainer.recipes.sample import Completion

FAST: dict[str, Any] = {
    "judgments": 40,
    "rounds": 2,
    "prompts": 2,
    "max_new_tokens": 4,
    "base_samples": 4,
    "settings": (
        ("labels.overlap", 1.0),
        ("labels.selection", "drts"),
        ("policy.optimiser.epochs", 1),
        ("reward.optimiser.epochs", 1),
        ("reward.ensemble", 2),
    ),
}


def letters(_question: str, text: str) -> float:
    """A score that differs for almost any two texts of random bytes."""
    return sum(map(ord, text)) % 97


def length(_question: str, text: str) -> float:
    return float(len(text))


# ---- a whole cell ----------------------------------------------------------------------------------------------------


def test_a_cell_that_was_killed_goes_on_to_the_same_result(
    tiny_model: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(PREFERENCES, "concise", letters)
    cell = Cell(method="dpo", **FAST)
    whole_store, other_store = tmp_path / "whole", tmp_path / "killed"
    made: list[str] = []
    whole_run = play(cell, Workshop(whole_store, str(tiny_model), made.append))
    kinds = [line.split()[0] for line in made]
    # Samples to label, samples to decide on adoption and, once, the base's answers to the measured prompts.
    assert kinds[:7] == ["sample", "reward", "dpo", "sample", "sample", "evaluate", "score"]
    assert kinds[7:] == ["sample", "reward", "dpo", "sample", "evaluate", "score"]

    # A reward model scores only the second round's samples, so that pairs can be chosen by its scores.
    specs = [json.loads(path.read_text())["spec"] for path in whole_store.glob("sample/*/made.json")]
    to_label = [spec for spec in specs if len(spec["models"]) == 1]
    assert sorted(len(spec["reward_models"]) for spec in to_label) == [0, 0, 1]

    # Killed in the policy's run: finished outputs stay, and the unfinished one leaves nothing.
    train = dpo.train

    def killed(*args: Any, **options: Any) -> Any:
        train(*args, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(dpo, "train", killed)
    first = cell.model_copy(update={"rounds": 1})
    with pytest.raises(KeyboardInterrupt):
        play(first, Workshop(other_store, str(tiny_model)))
    assert not (other_store / "dpo").exists()
    monkeypatch.setattr(dpo, "train", train)
    after: list[str] = []
    resumed = play(first, Workshop(other_store, str(tiny_model), after.append))
    assert [line.split()[0] for line in after] == ["dpo", "sample", "sample", "evaluate", "score"]
    assert without_costs(resumed["rounds"]) == without_costs(whole_run["rounds"][:1])

    # Existing outputs are not made again, and methods share everything except the policy.
    nothing: list[str] = []
    assert play(first, Workshop(other_store, str(tiny_model), nothing.append)) == resumed
    assert nothing == []
    other = first.model_copy(update={"settings": (*cell.settings, ("policy.beta", 0.5))})
    shared: list[str] = []
    play(other, Workshop(other_store, str(tiny_model), shared.append))
    assert [line.split()[0] for line in shared] == ["dpo", "sample", "evaluate"]

    for number, played in enumerate(whole_run["rounds"], 1):
        assert played["judgments"] == 40
        assert played["comparisons"] + played["heldout_comparisons"] == 40 * number
        for measured in played["kinds"].values():
            assert len(measured["win_shares"]) == 2
            assert all(0 <= share <= 1 for share in measured["win_shares"])
            assert measured["kl_k3"] >= 0
            assert ("shares_against_previous" in measured) == (number == 2)


def without_costs(result: Any) -> Any:
    if isinstance(result, dict):
        return {key: without_costs(value) for key, value in result.items() if key not in ("seconds", "peak_memory")}
    return [without_costs(value) for value in result] if isinstance(result, list) else result


def test_the_command_reports_what_it_played_and_what_failed(
    tiny_model: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    few = ["--methods", "dpo_today", "dpo", "--budgets", "12", "--prompts", "2", "--base-samples", "4"]
    arguments = [*few, "--max-new-tokens", "4", "--in-process", "--store", str(tmp_path), "--model", str(tiny_model)]
    assert main(arguments) == []
    assert "failed dpo concise 12 seed 0: A reward model needs" in capsys.readouterr().out
    stored = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [result["name"] for result in stored] == ["dpo_today", "dpo"]


def test_a_policy_that_the_reward_model_finds_worse_is_not_adopted(
    tiny_model: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The test sets the scores. Without adoption the policy stays the base, so its KL to the base is 0."""
    monkeypatch.setitem(PREFERENCES, "concise", letters)

    def differences(*values: float) -> None:
        monkeypatch.setattr(measure, "score_differences", lambda texts, per_model: list(values))

    cell = Cell(method="dpo", **FAST | {"rounds": 1})
    workshop = Workshop(tmp_path, str(tiny_model))
    differences(-1.0, -0.9, -0.5, -0.3, -0.2)
    (kept,) = play(cell, workshop)["rounds"]
    assert not kept["adopted"]
    assert kept["kinds"]["like"]["kl_k3"] == 0
    differences(-1.2, -1.0, -0.5, -0.3, 0.0)  # mean -0.6, deviation 0.495: Student's interval ends at 0.01
    (adopted,) = play(cell, workshop)["rounds"]
    assert adopted["adopted"]
    assert adopted["kinds"]["like"]["kl_k3"] > 0
    differences(-1.0, -0.9, -0.5, -0.3, -0.2)
    today = cell.model_copy(update={"method": "dpo_today", "settings": (), "judgments": 100})
    assert play(today, workshop)["rounds"][0]["adopted"]


def test_score_differences_are_of_the_first_models_mean_and_the_others() -> None:
    scores = [[1.0, 3.0], [4.0, 4.0], [0.0, 1.0], [0.0, 0.0]]  # two heads; means 2, 4, 0.5, 0
    (texts,) = texts_of(1, 4)
    scored = [c._replace(sampling={"reward": {"heads": s}}) for c, s in zip(texts.completions, scores, strict=True)]
    assert measure.score_differences([texts._replace(completions=scored)], 2) == [2.75]


# ---- cells -----------------------------------------------------------------------------------------------------------


def test_preferences_for_the_final_run_are_not_tuned_on() -> None:
    assert not set(TUNING) & set(FINAL_ONLY)
    lists: tuple[Any, ...] = ([0.1], [200], [1], [0])
    with pytest.raises(InvalidInput, match=FINAL_ONLY[0]):
        grid(["dpo"], ["concise", FINAL_ONLY[0]], *lists, ["policy.beta=0.2"])
    assert grid(["dpo"], [FINAL_ONLY[0]], *lists)[0].settings == ()
    assert grid(["dpo"], [FINAL_ONLY[0]], *lists, ["policy.beta=0.2"], final=True)[0].name == "dpo[policy.beta=0.2]"
    assert grid(["dpo"], ["concise"], *lists, ["policy.beta=0.2"])


def test_settings_reach_the_method_they_are_for_and_no_frozen_one() -> None:
    cells = grid(
        ["dpo_today", "dpo", "on_policy_dpo"],
        ["concise"],
        [0.1],
        [200],
        [1],
        [0],
        ["labels.overlap=1", "on_policy_dpo:policy.optimiser.epochs=3"],
        frozen=("dpo_today",),
    )
    assert [dict(cell.settings) for cell in cells] == [
        {},
        {"labels.overlap": 1},
        {"labels.overlap": 1, "policy.optimiser.epochs": 3},
    ]
    base = Workshop.__new__(Workshop)
    base.base = "models/base"
    spec = methods.policy_spec(cells[2], base.base_ref, base.base_ref, "s", "r", "p", 1)
    assert isinstance(spec, OnPolicyDPOSpec)
    # Settings that were not given have the spec's defaults.
    default = OnPolicyDPOSpec.model_fields["optimiser"].default
    assert spec.optimiser == default.model_copy(update={"epochs": 3})
    assert methods.labels_of(cells[1]).overlap == 1
    with pytest.raises(InvalidInput, match="labels, reward and policy"):
        grid(["dpo"], ["concise"], [0.1], [200], [1], [0], ["beta=0.2"])
    wrong = cells[1].model_copy(update={"settings": (("policy.betta", 1),)})
    with pytest.raises(InvalidInput, match="betta"):
        methods.policy_spec(wrong, base.base_ref, base.base_ref, "s", "r", "p", 1)


def test_the_whole_grid_makes_a_spec_for_every_cell() -> None:
    base = Workshop.__new__(Workshop)
    base.base = "models/base"
    for cell in whole():
        assert methods.policy_spec(cell, base.base_ref, base.base_ref, "s", "r", "p", 1).kind  # type: ignore[attr-defined]
        assert methods.reward_spec(cell, base.base_ref, "s", 1).kind == "reward"
    assert all(callable(recipe_of(method.kind)) for method in methods.METHODS.values())


def test_no_prompt_is_measured_that_was_trained_on() -> None:
    there = prompts.load()
    assert (len(there.train), len(there.heldout), len(there.measured)) == (40, 20, 160)
    everything = [*there.train, *there.heldout, *there.measured]
    assert len({row.id for row in everything}) == len({row.messages for row in map(frozen, everything)}) == 220


def frozen(row: PromptRow) -> Any:
    return type("Row", (), {"messages": json.dumps(row.messages)})


# ---- labels ----------------------------------------------------------------------------------------------------------


def texts_of(count: int, samples: int) -> list[Texts]:
    rows = [PromptRow(id=i, messages=({"role": "user", "content": f"Q{i}"},)) for i in range(1, count + 1)]
    said = [
        Completion(row.id, k, "x" * (1 + 5 * k), "eos", 3, 0, {"temperature": 1.0})
        for row in rows
        for k in range(samples)
    ]
    return by_prompt(rows, said)


def test_a_budget_pays_for_as_many_comparisons_as_overlap_allows() -> None:
    assert comparisons(400, Labels(overlap=2, heldout_share=0.1)) == (180, 20)
    assert comparisons(375, Labels(overlap=2.5, heldout_share=0.36)) == (96, 54)
    # 40 prompts of 4 samples have 240 pairs; 180 pairs with half as many in reserve are 270.
    assert samples_needed(160, 40, 4) == 4
    assert samples_needed(180, 40, 4) == 8


def test_pairs_are_spread_evenly_and_what_one_prompt_lacks_others_give() -> None:
    texts = texts_of(4, 3)
    counted = [sum(each is texts[i] for each, _ in choose(texts, 6, "random", 0)) for i in range(4)]
    assert sorted(counted) == [1, 1, 2, 2]
    same = texts[0]._replace(completions=[c._replace(text="same") for c in texts[0].completions])
    chosen = choose([same, *texts[1:]], 8, "random", 0)
    assert len(chosen) == len({(each.row.id, choice.ids) for each, choice in chosen}) == 8
    assert all(each is not same for each, _ in chosen)
    assert len(choose(texts, 100, "random", 0)) == 12  # three pairs a prompt: there are no more


def test_labelers_without_noise_agree_whichever_side_is_shown_first() -> None:
    """The longer one is 5 characters longer per step, so it is always 3 steps better."""
    crew = Crew(length, 0.0, Labels(overlap=2.5, position_bias=0.0), seed=1)
    rows = crew.judge(choose(texts_of(10, 2), 10, "random", 0), "train", 7)
    assert [row.comparison_id for row in rows] == list(range(7, 17))
    assert crew.judged == 25  # two, three, two, ...
    assert {row.preference for row in rows} == {3.0}  # sample 1 is longer, and is shown as B
    # Majority with the Jeffreys prior: (n + 1/2) / (n + 1).
    assert [round(row.p_b, 6) for row in rows[:2]] == [round(2.5 / 3, 6), round(3.5 / 4, 6)]
    assert all(row.agreement == 1 and row.opposed == 0 for row in rows)


def test_position_bias_cancels_over_the_sides() -> None:
    """All labelers judge only by position, and A is shown on the left half of the time."""
    crew = Crew(length, 0.0, Labels(overlap=1, position_bias=1.0), seed=1)
    rows = crew.judge(choose(texts_of(400, 2), 400, "random", 0), "train", 1)
    assert abs(sum(row.preference < 0 for row in rows) / 400 - 0.5) < 0.125  # five standard deviations


# ---- measures --------------------------------------------------------------------------------------------------------


def test_the_best_of_n_is_the_mean_over_all_choices_of_n() -> None:
    assert expected_best([1.0, 2.0, 6.0], 1) == pytest.approx(3)
    assert expected_best([1.0, 2.0, 6.0], 2) == pytest.approx((2 + 6 + 6) / 3)
    assert expected_best([1.0, 2.0, 6.0], 3) == 6


def test_best_of_n_is_read_at_equal_kl() -> None:
    texts = texts_of(1, 4)  # lengths 1, 6, 11, 16
    assert best_of_n_at(length, texts, 0.0) == (pytest.approx(8.5), 1)
    at_two = math.log(2) - 1 / 2
    # Pairs' maxima: 6, 11, 16, 11, 16, 16.
    assert best_of_n_at(length, texts, at_two) == (pytest.approx(76 / 6), pytest.approx(2))
    assert best_of_n_at(length, texts, 50.0) == (16, 4)
    assert best_of_n_at(length, texts, at_two / 2)[1] == pytest.approx(1.5)


def test_an_interval_over_runs_and_prompts_is_wider_than_over_prompts() -> None:
    """Two runs without spread within, with values 0 and 1: the means are 0, 1/2 and 1 with shares 1/4, 1/2, 1/4."""
    assert interval([[0.0] * 9, [1.0] * 9]) == (0.5, 0.0, 1.0, 9)
    assert interval([[0.25] * 9]) == (0.25, 0.25, 0.25, 9)


def test_judgments_saved_is_read_from_todays_curve() -> None:
    curve = [(math.log(100), 0.5), (math.log(400), 0.7), (math.log(800), 0.65)]
    assert math.exp(budget_for(0.6, curve)[0]) == pytest.approx(200)  # half-way in the logarithm
    assert budget_for(0.9, curve) == (math.log(800), ">=")
    assert budget_for(0.4, curve) == (math.log(100), "<=")
    assert math.exp(budget_for(0.7, curve)[0]) == pytest.approx(400)

    def group(method: str, judgments: int, kind: str = "like") -> Group:
        return Group(method, "concise", 0.1, judgments, 1, kind)

    def rate(value: float) -> WinRate:
        return WinRate(value, 0, 1, 80)

    measured = {group("dpo_today", 100): rate(0.5), group("dpo_today", 400): rate(0.7), group("new", 100): rate(0.6)}
    assert judgments_saved(measured)["new"].times == pytest.approx(2)
    measured |= {group("new", 200): rate(0.9), group("other", 100, "unlike"): rate(0.9)}
    # 200 / 100 and at least 400 / 200; for the other kind, the baseline's need is unknown.
    saved = judgments_saved(measured)
    assert saved["new"].times == pytest.approx(2)
    assert saved["new"].bound == ">="
    assert "other" not in saved


def test_last_lines_pool_seeds_and_take_the_last_round(tmp_path: Path) -> None:
    def result(seed: int, shares: list[float]) -> dict[str, Any]:
        kinds = {"like": {"win_shares": shares}}
        cell = Cell(method="dpo", judgments=200, rounds=2, noise=0.25, seed=seed)
        first = {"kinds": {"like": {"win_shares": [0.0, 0.0]}}}
        return {"cell": cell.model_dump(mode="json"), "name": "dpo", "rounds": [first, {"kinds": kinds}]}

    path = tmp_path / "results.jsonl"
    report.append(path, result(0, [0.0, 0.0]))
    report.append(path, result(0, [1.0, 0.5]))
    report.append(path, result(1, [0.5, 0.5]))
    with path.open("a") as handle:
        handle.write('{"cell": {"meth')
    results = report.read(path)
    assert len(results) == 2  # if a cell was played twice, the later result
    (line,) = report.last_lines(results)
    assert line.startswith("win_rate dpo concise@0.25.like 2x200 0.625 ")
    report.append(path, result(2, [0.5, 0.5]))
    assert len(report.read(path)) == 3  # an incomplete line does not hide the next one


def test_seeds_of_parts_never_coincide() -> None:
    seeds = [
        seed_of(Cell(method="dpo", seed=seed), number, part)
        for seed in range(5)
        for number in range(1, 5)
        for part in (LABELING, CREW, REWARD, POLICY, VERDICT, EVALUATION)
    ]
    assert len({*seeds, BASE_SEED}) == len(seeds) + 1

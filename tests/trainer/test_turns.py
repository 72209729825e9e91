"""Runs in phases: the limits on how far they go, and that they learn what the scores reward."""

import gc
import json
import shutil
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from app.artifacts import ArtifactStore, digest_folder
from app.domain.intervals import Interval
from app.domain.monitors import IN_RUNS
from app.domain.watching import Figures, Sign, Watch
from app.errors import InvalidInput, StorageFull
from app.rows import DemonstrationRow, PromptRow
from app.specs import BestOfNSpec, Lora, ModelRef, OnPolicyDPOSpec, Optimiser, SFTSpec
from tests.trainer.conftest import separable_pairs, user, write_rows
from trainer.batching.chat import TokenSequence
from trainer.checkpoints import Checkpoints
from trainer.evaluation.figures import Heads, Said, response_logps
from trainer.models.loading import load_causal_lm
from trainer.models.saving import save_policy
from trainer.models.sizes import Sizes
from trainer.processes import accelerator
from trainer.recipes import best_of_n, dpo, on_policy_dpo, sft
from trainer.reporting import ConsoleReporter, PolicyResult
from trainer.training.phases import workplace
from trainer.training.turns import STEPS, Candidate, Turns, significantly_worse

FAST = Optimiser(learning_rate=3e-3, epochs=1, batch_size=8)


def heads(score: Any) -> Heads:
    """Return two members of a reward model that always agree."""

    def said(responses: Sequence[Said]) -> torch.Tensor:
        return torch.tensor([[score(response.text)] * 2 for response in responses]).float()

    return said


def digits(text: str) -> float:
    """Return the number of digits."""
    return float(sum(character.isdigit() for character in text))


@pytest.fixture(scope="module")
def ending_ref(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    """A tiny model that has learned to finish its answers. They speak of apples and rocks, with digits around them."""
    root = tmp_path_factory.mktemp("ending")
    rows = [
        DemonstrationRow(id=pair.prompt_id, messages=pair.messages, response=pair.response_a)
        for pair in separable_pairs(160, 0, seed=5)
    ]
    spec = SFTSpec(
        policy=ModelRef(base=str(tiny_model)),
        demonstrations=str(write_rows(root / "rows.jsonl", rows)),
        lora=None,
        optimiser=Optimiser(learning_rate=3e-3, epochs=4),
        max_length=128,
    )
    with ArtifactStore(root).folder("model") as folder:
        sft.train(spec, ArtifactStore(root), ConsoleReporter(stream=None), folder)
    return ModelRef(base=str(root / "model"))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    prompts = [PromptRow(id=i, messages=user(f"Yours {i}?"), slices={"domain": "ab"[i % 2]}) for i in range(12)]
    return {
        "prompts": str(write_rows(tmp_path / "prompts.jsonl", prompts)),
        "snapshot": str(write_rows(tmp_path / "snapshot.jsonl", separable_pairs(32, 0))),
    }


def spec_of(ending_ref: ModelRef, files: dict[str, str], kind: Any = OnPolicyDPOSpec, **changes: Any) -> Any:
    settings = {
        "policy": ending_ref,
        "reward_models": ("scripted",),
        "lora": Lora(rank=8, alpha=16),
        "optimiser": FAST,
        "samples_per_prompt": 8,
        "max_new_tokens": 20,
        "missing_eos_penalty": 0.0,
        "kl_budget": None,
        "max_length": 128,
        **files,
    }
    return kind.model_validate(settings | changes)


def run(recipe: Any, spec: Any, store: ArtifactStore) -> tuple[PolicyResult, ConsoleReporter, Path]:
    (store.root / "scripted").mkdir(parents=True, exist_ok=True)
    reporter = ConsoleReporter(stream=None)
    with store.folder("models/new") as folder:
        result = recipe.train(spec, store, reporter, folder, heads=lambda: heads(digits))
    return result, reporter, store.resolve("models/new")


def test_on_policy_dpo_raises_the_score_turn_by_turn(
    ending_ref: ModelRef, files: dict[str, str], store: ArtifactStore
) -> None:
    # People's comparisons are about something else, so they hardly change the score.
    spec = spec_of(ending_ref, files, human_epochs=1, human_learning_rate=1e-5, turns=2, nll_weight=0.01)
    result, reporter, folder = run(on_policy_dpo, spec, store)
    scores = reporter.values("objective/scores")
    assert len(scores) == 3  # after people's comparisons, and after each turn
    assert scores[0] < scores[1] < scores[2]
    assert scores[2] > scores[0] + 0.5
    assert reporter.values("turn/pairs")[0] >= 20
    steps = {
        name: [each.step for each in reporter.recorded if each.name == name] for name in ("nll_loss", "val/length")
    }
    assert min(steps["nll_loss"]) > steps["val/length"][0]  # only in turns
    assert (folder / "adapter_model.safetensors").exists()
    assert result.metrics["objective/scores"] == scores[2]
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == ending_ref.base


def test_best_of_n_imitates_the_best(ending_ref: ModelRef, files: dict[str, str], store: ArtifactStore) -> None:
    spec = spec_of(ending_ref, files, BestOfNSpec, turns=2, best=4, optimiser=FAST.model_copy(update={"epochs": 3}))
    _, reporter, _ = run(best_of_n, spec, store)
    scores = reporter.values("objective/scores")
    assert scores[1] > scores[0]
    assert all(gain > 0 for gain in reporter.values("turn/margin"))


def test_an_alarm_ends_the_run_and_keeps_the_policy_before_that_phase(
    ending_ref: ModelRef, files: dict[str, str], store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The alarm is planted: tests/domain/test_watching.py tests the rule for alarms."""
    looks: list[int] = []

    def look(watch: Watch, figures: Figures) -> list[Sign]:
        looks.append(len(figures["length"]))
        watch.baseline = watch.baseline or {"length": dict(figures["length"])}
        monitor = next(each for each in IN_RUNS if each.name == "hedging")
        return [Sign(monitor, 0.1, 0.9, Interval(0.8, 0.7, 0.9))] if len(looks) == 3 else []

    monkeypatch.setattr(Watch, "look", look)
    spec = spec_of(ending_ref, files, human_epochs=1, human_learning_rate=1e-3, turns=2)
    stopped, reporter, folder = run(on_policy_dpo, spec.model_copy(update={"monitors": "stop"}), store)
    assert looks == [12, 12, 12]  # at the start, after people's comparisons, and after the first turn
    assert [(each["monitor"], each["step"]) for each in stopped.alarms] == [("hedging", reporter.recorded[-1].step)]
    assert "the policy before that phase is kept" in " ".join(stopped.notes)
    kept, scores = digest_folder(folder), reporter.values("objective/scores")
    assert stopped.metrics["objective/scores"] == scores[0]
    monkeypatch.undo()
    shutil.rmtree(folder)
    assert kept == digest_folder(run(on_policy_dpo, spec.model_copy(update={"turns": 0}), store)[2])


@pytest.mark.parametrize("lora", [Lora(rank=8, alpha=16), None])
def test_a_phase_beyond_the_budget_is_shortened_and_no_turn_follows_a_shortened_one(
    ending_ref: ModelRef, files: dict[str, str], store: ArtifactStore, lora: Lora | None
) -> None:
    rate = 5e-3 if lora else 1e-3
    loose = spec_of(ending_ref, files, lora=lora, human_epochs=2, human_learning_rate=rate, turns=1)
    far = run(on_policy_dpo, loose, store)[1].values("objective/kl")[0]
    assert far > 0.1
    budget = far / 2
    result, reporter, _ = run(on_policy_dpo, loose.model_copy(update={"kl_budget": budget, "turns": 3}), store)
    kl, shares = (
        [(each.step, each.value) for each in reporter.recorded if each.name == name]
        for name in ("objective/kl", "turn/share_of_step")
    )
    assert 0 < kl[0][1] <= budget / 2  # half is left for the turns
    assert 0.2 < shares[0][1] < 1
    assert max(value for _, value in kl) <= budget
    assert len(kl) < 4
    assert [step for step, _ in shares[1:]] == [kl[-1][0]]  # the first shortened turn is the last one
    assert any("KL budget" in note for note in result.notes)


def test_a_share_of_a_step_lies_between_its_ends(
    ending_ref: ModelRef, files: dict[str, str], store: ArtifactStore, tmp_path: Path
) -> None:
    _, _, folder = run(on_policy_dpo, spec_of(ending_ref, files, human_epochs=1, turns=1), store)
    after = ModelRef(base=ending_ref.base, adapter=str(folder))
    work = ArtifactStore(tmp_path / "work")
    turns = Turns(spec_of(ending_ref, files), store, ConsoleReporter(stream=None), None, work)
    half = turns._between(ending_ref, after, 0.5, "half")
    assert half.adapter is not None
    mine, whole = (load_file(Path(str(ref.adapter)) / "adapter_model.safetensors") for ref in (half, after))
    for name, tensor in mine.items():
        # In a new adapter, B starts at 0: half of B gives half of B times A.
        torch.testing.assert_close(tensor, whole[name] * (0.5 if "lora_B" in name else 1.0))
    between = turns._between(half, after, 0.25, "between")
    found = load_file(Path(str(between.adapter)) / "adapter_model.safetensors")
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, 0.75 * mine[name] + 0.25 * whole[name])


def test_kl_is_that_of_the_tokens_said(
    ending_ref: ModelRef, other_tiny_model: Path, files: dict[str, str], store: ArtifactStore, tmp_path: Path
) -> None:
    (store.root / "scripted").mkdir(parents=True)
    work, spec = ArtifactStore(tmp_path / "work"), spec_of(ending_ref, files)
    turns = Turns(spec, store, ConsoleReporter(stream=None), None, work, heads=lambda: heads(digits))
    turns.policy = ModelRef(base=str(other_tiny_model))
    answers, _ = turns.turn_answers(0)
    assert len(answers.items) == 12 * 8
    some = answers.items[:5]
    sequences = [TokenSequence(answer.prompt, answer.tokens) for answer in some]
    logps = [
        response_logps(load_causal_lm(ref, dtype=torch.float32), sequences, 1.0, 0)
        for ref in (turns.policy, ending_ref)
    ]
    for i, (policy, start) in enumerate(zip(*logps, strict=True)):
        assert float(answers.kl[i]) == pytest.approx(float((policy - start).sum()), abs=1e-2)
    again = Turns(spec, store, ConsoleReporter(stream=None), None, work, heads=lambda: pytest.fail("scored again"))
    again.policy = turns.policy
    assert again.turn_answers(0)[0].items == answers.items  # read, not sampled again


def test_what_people_speak_against_is_not_kept() -> None:
    good, bad, unsure = torch.ones(30), torch.cat([torch.zeros(12), torch.ones(18)]), torch.full((30,), 0.5)
    assert significantly_worse(bad, good)
    assert not significantly_worse(good, bad)
    # One of thirty was lost: a difference of 1/30 with a standard error of 1/30.
    assert not significantly_worse(torch.cat([torch.zeros(1), torch.ones(29)]), good)
    assert not significantly_worse(torch.tensor([0.0]), torch.tensor([1.0]))

    turns = object.__new__(Turns)
    refs = [ModelRef(base=name) for name in ("one", "two", "three")]

    def chosen(*rights: torch.Tensor) -> str:
        turns.notes = []
        turns.candidates = [Candidate(ref.base, ref, right, {}) for ref, right in zip(refs, rights, strict=False)]
        return turns.chosen().phase

    assert chosen(unsure, good, bad) == "two"
    assert "three" in turns.notes[0]
    assert chosen(unsure, bad, good) == "three"
    assert chosen(torch.zeros(0), torch.zeros(0)) == "two"  # nothing shows the last policy to be worse
    assert not turns.notes
    assert chosen(1 - good) == "one"
    assert "the new policy is worse than the starting policy" in turns.notes[0]  # whose results are 0.5 by definition
    assert not significantly_worse(torch.zeros(4), torch.ones(4))  # four equal results happen by chance 1 time in 16
    with pytest.raises(InvalidInput, match="nothing to learn") as error:
        chosen()
    assert "`turns`" in str(error.value)


def test_no_other_model_is_in_memory_while_the_next_phase_samples(
    ending_ref: ModelRef, files: dict[str, str], store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []
    loaded: list[weakref.ref[Any]] = []

    def load(*arguments: Any, **settings: Any) -> Any:
        model = load_causal_lm(*arguments, **settings)
        loaded.append(weakref.ref(model))
        return model

    def look() -> Heads:
        others = loaded[:-1]  # the last one is the policy that will be sampled next
        held.append(len(accelerator()._models) + sum(model() is not None for model in others))
        return heads(digits)

    for module in (
        "trainer.training.scored_answers",
        "trainer.models.interpolation",
        "trainer.models.loading",
        "trainer.training.turns",
    ):
        monkeypatch.setattr(f"{module}.load_causal_lm", load)
    accelerator().free_memory()
    (store.root / "scripted").mkdir(parents=True)
    spec = spec_of(ending_ref, files, human_epochs=1, human_learning_rate=1e-3, turns=1, kl_budget=0.1)
    gc.disable()  # no garbage collection by chance
    try:
        with store.folder("models/new") as folder:
            on_policy_dpo.train(spec, store, ConsoleReporter(stream=None), folder, heads=look)
    finally:
        gc.enable()
    assert len(held) > 3
    assert set(held) == {0}


def test_a_step_that_is_not_taken_ends_with_the_same_weights_whatever_ran_before(
    ending_ref: ModelRef, files: dict[str, str], store: ArtifactStore, tmp_path: Path
) -> None:
    (store.root / "scripted").mkdir(parents=True)
    turns = Turns(spec_of(ending_ref, files), store, ConsoleReporter(stream=None), None, ArtifactStore(tmp_path / "w"))
    turns.candidates = [Candidate("turn 1", turns.start, torch.zeros(0), {})]
    digests = set()
    for state in (1, 2):
        torch.manual_seed(state)
        folder = tmp_path / str(state)
        folder.mkdir()
        turns.finish(folder)
        digests.add(digest_folder(folder))
    assert len(digests) == 1


@pytest.mark.parametrize("kind", [OnPolicyDPOSpec, BestOfNSpec])
def test_a_kill_behind_a_phases_last_step_loses_no_step_and_no_metric(
    ending_ref: ModelRef, files: dict[str, str], store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    recipe, inner = (on_policy_dpo, dpo) if kind is OnPolicyDPOSpec else (best_of_n, sft)
    changes: dict[str, Any] = {"human_epochs": 0} if kind is OnPolicyDPOSpec else {"best": 4}
    spec = spec_of(ending_ref, files, kind, turns=1, **changes)
    (store.root / "scripted").mkdir(parents=True)
    said: list[str] = []
    checkpoints = Checkpoints(
        store, "checkpoints/run", spec, 0, on_saving=lambda: said.append(f"said, done {work.exists('turn-1')}")
    )
    work = checkpoints.phases
    reporter = ConsoleReporter(stream=None)

    def train() -> PolicyResult:
        with store.folder("models/new") as folder:
            return recipe.train(spec, store, reporter, folder, checkpoints, heads=lambda: heads(digits))

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(inner, "save_policy", killed)
        with pytest.raises(KeyboardInterrupt):
            train()
    last = max(metric.step for metric in reporter.recorded)
    assert last > 3
    said.clear()
    train()
    assert [metric.step for metric in reporter.recorded if metric.name == "objective/kl"] == [last]
    assert said == ["said, done False"]

    steps = work.root / "turn-1" / STEPS
    *found, _ = json.loads(steps.read_text())
    steps.write_text(json.dumps([*found, 1000]))
    assert train().seconds > 1000  # earlier attempts count


def test_comparisons_that_are_left_out_are_named_and_never_mixed_in(
    ending_ref: ModelRef, files: dict[str, str], store: ArtifactStore, tmp_path: Path
) -> None:
    pairs = separable_pairs(48, 0)
    rows = [*pairs[:24], *(pair.model_copy(update={"p_b": 0.5}) for pair in pairs[24:])]
    snapshot = str(write_rows(tmp_path / "ties.jsonl", rows))
    spec = spec_of(ending_ref, files | {"snapshot": snapshot}, human_epochs=1, turns=1, human_share=0.5)
    (store.root / "scripted").mkdir(parents=True)
    checkpoints = Checkpoints(store, "checkpoints/run", spec, 1e9)
    with store.folder("models/new") as folder:
        reporter = ConsoleReporter(stream=None)
        result = on_policy_dpo.train(spec, store, reporter, folder, checkpoints, heads=lambda: heads(digits))
    assert [reason for reason in result.dropped if "24 comparisons are ties" in reason]
    lines = (checkpoints.phases.root / "turn-1-pairs.jsonl").read_text().splitlines()
    mixed = [row for row in map(json.loads, lines) if row["comparison_id"] >= 0]
    assert len(mixed) >= 20
    assert all(row["p_b"] != 0.5 for row in mixed)


def test_a_policys_adapter_may_grow_and_a_smaller_rank_is_refused_before_anything_is_sampled(
    ending_ref: ModelRef, files: dict[str, str], store: ArtifactStore, tmp_path: Path
) -> None:
    _, _, folder = run(on_policy_dpo, spec_of(ending_ref, files, human_epochs=1, turns=0), store)
    second = ModelRef(base=ending_ref.base, adapter=str(folder))
    work = ArtifactStore(tmp_path / "work")

    def turns_with(rank: int, policy: ModelRef = second) -> Turns:
        spec = spec_of(policy, files, lora=Lora(rank=rank, alpha=32))
        return Turns(spec, store, ConsoleReporter(stream=None), None, work)

    with pytest.raises(InvalidInput, match="rank 4 cannot hold"):
        turns_with(4)
    # A share of the step from an adapter of rank 8 to an adapter of rank 16 whose B is twice as large.
    turns = turns_with(16)
    whole = load_causal_lm(second, Lora(rank=16, alpha=32), trainable=True, dtype=torch.float32)
    old = {name: parameter.detach().clone() for name, parameter in whole.named_parameters() if parameter.requires_grad}
    with torch.no_grad(), ArtifactStore(tmp_path).folder("after") as after:
        for name, parameter in whole.named_parameters():
            parameter.mul_(2 if "lora_B" in name else 1)
        save_policy(whole, turns.tokenizer, after)
    half = turns._between(second, ModelRef(base=ending_ref.base, adapter=str(tmp_path / "after")), 0.5, "half")
    found = load_causal_lm(half, Lora(rank=16, alpha=32), trainable=True, dtype=torch.float32)
    for name, parameter in found.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter, old[name] * (1.5 if "lora_B" in name else 1))


def test_each_stored_part_of_the_answers_counts_as_progress_once(
    ending_ref: ModelRef, files: dict[str, str], store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.training.scored_answers.PART", 32)  # four prompts with eight answers each
    (store.root / "scripted").mkdir(parents=True)
    spec, saved = spec_of(ending_ref, files), list[int]()
    checkpoints = Checkpoints(store, "checkpoints/run", spec, on_saved=saved.append)
    for _ in range(2):
        reporter = ConsoleReporter(stream=None)
        turns = Turns(spec, store, reporter, checkpoints, checkpoints.phases, heads=lambda: heads(digits))
        assert len(turns.turn_answers(0)[0].items) == 12 * 8
        assert len(saved) == 3


def test_what_is_done_at_once_stays_after_a_kill(
    ending_ref: ModelRef, files: dict[str, str], store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    (store.root / "scripted").mkdir(parents=True)
    spec = spec_of(ending_ref, files)
    checkpoints = Checkpoints(store, "checkpoints/run", spec)
    found = []
    for sizes in (Sizes(512, 1024, 16, 32), Sizes(256, 512, 8, 8)):  # the second time, less memory is free
        monkeypatch.setattr("trainer.training.turns.sizes_for", lambda *_, sizes=sizes, **__: sizes)
        turns = Turns(spec, store, ConsoleReporter(stream=None), checkpoints, checkpoints.phases)
        found.append((turns.sizes, turns.optimiser.microbatch_tokens, turns.at_once))
    assert found[0] == found[1] == (Sizes(512, 1024, 16, 32), 512, 32)


def test_a_process_that_fails_alone_waits_for_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator(), "wait_for_everyone", lambda: pytest.fail("waits"))
    place = workplace(None)
    root = place.__enter__().root
    error = StorageFull("full")
    assert not place.__exit__(StorageFull, error, None)
    assert not root.exists()

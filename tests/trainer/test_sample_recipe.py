"""The sampling recipe: streamed, resumable, repeatable."""

import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.artifacts import ArtifactStore
from app.errors import InvalidInput, ModelUnavailable, PrefloopError
from app.rows import PromptRow
from app.specs import Generation, Lora, ModelRef, SampleSpec
from tests.trainer.conftest import build_reward_model, user, write_rows
from trainer.batching.chat import ChatEncoder, TokenSequence
from trainer.batching.data import read_prompts
from trainer.batching.packing import pack
from trainer.models.loading import load_causal_lm, load_tokenizer
from trainer.models.saving import save_policy
from trainer.recipes import sample
from trainer.recipes.sample import Completion
from trainer.reporting import ConsoleReporter, RunCancelled, TrainingDiverged
from trainer.reward.model import load_reward_model
from trainer.sampling.generation import Sampling, generate


@pytest.fixture
def spec(tiny_ref: ModelRef, tmp_path: Path) -> SampleSpec:
    path = tmp_path / "prompts.jsonl"
    rows = [PromptRow(id=100 + i, messages=user("z" * (i * 5 % 17))) for i in range(9)]
    write_rows(path, rows)
    generation = Generation(samples_per_prompt=3, max_new_tokens=20, temperature=0.9, batch_size=12)
    return SampleSpec(models=(tiny_ref,), prompts=str(path), generation=generation, seed=5)


def by_key(completions: list[Completion]) -> dict[tuple[int, int], Completion]:
    return {(c.prompt_id, c.sample_index): c for c in completions}


def test_every_sample_is_handed_on_once_in_batches(spec: SampleSpec, store: ArtifactStore) -> None:
    # Answers are long enough that some finish: one token of 260 is the end.
    spec = spec.model_copy(update={"generation": spec.generation.model_copy(update={"max_new_tokens": 60})})
    batches: list[list[Completion]] = []
    reporter = ConsoleReporter(stream=None)
    result = sample.sample(spec, store, reporter, lambda completions: batches.append(list(completions)))
    completions = [completion for batch in batches for completion in batch]
    assert sorted((c.prompt_id, c.sample_index) for c in completions) == [
        (100 + i, k) for i in range(9) for k in range(3)
    ]
    assert len(batches) >= 3
    assert all(len(batch) % 3 == 0 for batch in batches)  # prompts come whole, so that their pairs can be asked at once
    assert len({c.seed for c in completions}) == 27
    for c in completions:
        assert c.sampling == {"temperature": 0.9, "max_new_tokens": 60}
        assert (c.finish_reason == "length") == (c.n_tokens == 60) or c.n_tokens == 60
        assert "<|im_end|>" not in c.text
    assert result.samples == 27
    assert result.finished == sum(c.finish_reason == "eos" for c in completions)
    assert result.tokens == sum(c.n_tokens for c in completions)
    assert result.precision == ("float32",)
    assert reporter.last("samples") == 27
    assert {c.finish_reason for c in completions} == {"eos", "length"}


def test_a_run_goes_on_where_it_was_cut(spec: SampleSpec, store: ArtifactStore) -> None:
    whole: list[Completion] = []
    sample.sample(spec, store, ConsoleReporter(stream=None), whole.extend)

    class Cancelling(ConsoleReporter):
        def progress(self, done: int, total: int, message: str = "") -> None:
            if done >= 9:
                raise RunCancelled("The run was cancelled.")

    first: list[Completion] = []
    with pytest.raises(RunCancelled):
        sample.sample(spec, store, Cancelling(stream=None), first.extend)
    assert 9 <= len(first) < 27
    rest: list[Completion] = []
    result = sample.sample(spec, store, ConsoleReporter(stream=None), rest.extend, done=by_key(first).keys())
    assert result.samples == 27 - len(first)
    assert not by_key(first).keys() & by_key(rest).keys()
    assert by_key(first + rest) == by_key(whole)

    again = sample.sample(spec, store, ConsoleReporter(stream=None), rest.extend, done=by_key(whole).keys())
    assert again.samples == 0


def test_some_models_answer_only_what_is_held_out(
    spec: SampleSpec, store: ArtifactStore, other_tiny_model: Path
) -> None:
    rows = read_prompts(Path(spec.prompts))
    tagged = [row.model_copy(update={"slices": {"split": "heldout" if row.id < 102 else "train"}}) for row in rows]
    write_rows(Path(spec.prompts), tagged)
    both = spec.model_copy(update={"models": (*spec.models, ModelRef(base=str(other_tiny_model))), "heldout_models": 1})
    found: list[Completion] = []
    reporter = ConsoleReporter(stream=None)
    assert sample.sample(both, store, reporter, found.extend).samples == 9 * 3 + 2 * 3
    expected = [(100 + i, index) for i in range(9) for index in range(6 if i < 2 else 3)]
    assert sorted(by_key(found)) == expected
    # The same samples as before: it has no effect which prompts others answer.
    whole: list[Completion] = []
    sample.sample(both.model_copy(update={"heldout_models": 0}), store, reporter, whole.extend)
    assert {key: each for key, each in by_key(whole).items() if key in by_key(found)} == by_key(found)


def test_several_models_are_sampled_in_one_run(
    spec: SampleSpec, store: ArtifactStore, other_tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = ModelRef(base=str(other_tiny_model))
    both = spec.model_copy(update={"models": (*spec.models, other)})
    loaded: list[weakref.ref] = []

    def load(ref: ModelRef, **how: Any) -> torch.nn.Module:
        assert all(model() is None for model in loaded), "the model before is still in memory"
        model = load_causal_lm(ref, **how)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(sample, "load_causal_lm", load)
    whole: list[Completion] = []
    assert sample.sample(both, store, ConsoleReporter(stream=None), whole.extend).samples == 54
    assert len(loaded) == 2
    assert sorted(by_key(whole)) == [(100 + i, index) for i in range(9) for index in range(6)]
    assert len({c.seed for c in whole}) == 54

    # The first model's samples are the same as alone; the second's come from the second model.
    alone: list[Completion] = []
    sample.sample(spec, store, ConsoleReporter(stream=None), alone.extend)
    assert by_key(alone).items() <= by_key(whole).items()
    model, encoder = load_causal_lm(other), ChatEncoder(load_tokenizer(other), 512)
    for completion in [c for c in whole if c.sample_index >= 3][:4]:
        row = next(row for row in read_prompts(Path(spec.prompts)) if row.id == completion.prompt_id)
        prompt, sampling = encoder.prompt(row.messages), Sampling(20, 0.9, frozenset({encoder.end_id}))
        *_, [(_, [made_again])] = generate(model, [prompt], [[completion.seed]], sampling, encoder.end_id, rows=1)
        assert encoder.tokenizer.decode(made_again.body, skip_special_tokens=False) == completion.text

    # If a run was interrupted during the second model, it loads only that model.
    kept = [c for c in whole if c.sample_index < 3 or c.prompt_id < 103]
    rest: list[Completion] = []
    sample.sample(both, store, ConsoleReporter(stream=None), rest.extend, done=by_key(kept).keys())
    assert len(loaded) == 4  # both above, the first alone, the second now
    assert by_key(kept + rest) == by_key(whole)


@pytest.mark.parametrize("wrong", ["a model", "a length"])
def test_what_a_later_model_lacks_is_told_before_the_first_is_sampled(
    spec: SampleSpec, store: ArtifactStore, tmp_path: Path, other_tiny_model: Path, wrong: str
) -> None:
    second = shutil.copytree(other_tiny_model, tmp_path / "second")
    expected: type[PrefloopError] = ModelUnavailable
    if wrong == "a model":
        (second / "tokenizer.json").unlink()
    else:
        config = json.loads((second / "config.json").read_text())
        (second / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 20}))
        expected = InvalidInput
    both = spec.model_copy(update={"models": (*spec.models, ModelRef(base=str(second)))})
    handed_on: list[Completion] = []
    with pytest.raises(expected):
        sample.sample(both, store, ConsoleReporter(stream=None), handed_on.extend)
    assert handed_on == []


def test_prompts_that_are_not_read_whole_are_named(spec: SampleSpec, store: ArtifactStore) -> None:
    rows = read_prompts(Path(spec.prompts))
    long = rows[4].model_copy(update={"messages": user("z" * 474)})  # 19 tokens of template, and 20 new ones: 513
    write_rows(Path(spec.prompts), [*rows[:4], long, *rows[5:]])
    note = "1 prompts lost a part, to stay within 512 tokens with 20 new ones: 104"
    everything = {(row.id, index) for row in rows for index in range(3)}

    def notes(wanted: tuple[int, int]) -> tuple[str, ...]:
        done = everything - {wanted}
        return sample.sample(spec, store, ConsoleReporter(stream=None), lambda completions: None, done).notes

    assert notes((104, 0)) == (note,)
    assert notes((108, 0)) == (note,)  # a resumed run gives the same notes

    # Two models, of which the first is complete.
    spec = spec.model_copy(update={"models": spec.models * 2})
    result = sample.sample(spec, store, ConsoleReporter(stream=None), lambda completions: None, everything)
    assert result.notes == (note,)
    assert result.precision == ("float32", "float32")
    write_rows(Path(spec.prompts), rows)
    assert notes((104, 0)) == ()


def test_a_policy_with_an_adapter_is_sampled(spec: SampleSpec, store: ArtifactStore, tmp_path: Path) -> None:
    model = load_causal_lm(spec.models[0], Lora(rank=4), trainable=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(0))
    save_policy(model, load_tokenizer(spec.models[0]), tmp_path / "adapter")
    plain: list[Completion] = []
    adapted: list[Completion] = []
    sample.sample(spec, store, ConsoleReporter(stream=None), plain.extend)
    adapter = ModelRef(base=spec.models[0].base, adapter=str(tmp_path / "adapter"))
    sample.sample(spec.model_copy(update={"models": (adapter,)}), store, ConsoleReporter(stream=None), adapted.extend)
    assert sum(a.text != b.text for a, b in zip(plain, adapted, strict=True)) > 20


def test_on_the_command_line_completions_become_a_file(spec: SampleSpec, store: ArtifactStore, tmp_path: Path) -> None:
    result = sample.train(spec, store, ConsoleReporter(stream=None), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "completions.jsonl").read_text().splitlines()]
    assert len(rows) == result.samples == 27
    assert set(rows[0]) == {"prompt_id", "sample_index", "text", "finish_reason", "n_tokens", "seed", "sampling"}


def test_reward_models_say_what_they_think_of_each_sample(
    spec: SampleSpec, tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path
) -> None:
    """Each head's reward of the text that people read, batch by batch; the samples themselves are unchanged."""
    two = build_reward_model(tmp_path / "two", tiny_ref, seed=3, heads=("reward/0", "reward/1"))
    one = build_reward_model(tmp_path / "one", tiny_ref, seed=4)
    plain: list[Completion] = []
    sample.sample(spec, store, ConsoleReporter(stream=None), plain.extend)
    scored: list[Completion] = []
    with_rewards = spec.model_copy(update={"reward_models": (str(two), str(one)), "max_length": 200})
    sample.sample(with_rewards, store, ConsoleReporter(stream=None), scored.extend)
    assert [c._replace(sampling={}) for c in scored] == [c._replace(sampling={}) for c in plain]
    rows = {row.id: row for row in read_prompts(Path(spec.prompts))}
    for c in scored[::7]:
        assert c.sampling["reward"]["models"] == [str(two), str(one)]
        expected = []
        for folder in (two, one):
            model, tokenizer = load_reward_model(folder, torch.float32)
            encoder = ChatEncoder(tokenizer, 200)
            tokens = encoder.prompt(rows[c.prompt_id].messages) + encoder.completion(c.text)
            batch = pack([TokenSequence(tokens[:-1], tokens[-1:])], tokenizer.pad_token_id, model.share)
            expected += model(batch)[0].tolist()
        assert c.sampling["reward"]["heads"] == pytest.approx(expected, abs=1e-4)
    json.dumps([c._asdict() for c in scored])  # the stored format


def test_rewards_that_are_no_numbers_end_the_run_by_name(
    spec: SampleSpec, tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path
) -> None:
    folder = build_reward_model(tmp_path / "broken", tiny_ref)
    weights = load_file(folder / "model.safetensors")
    for name in ("model.norm.weight", "score.weight"):
        weights[name].fill_(1e20)  # finite numbers whose product is infinite
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    kept: list[Completion] = []
    with pytest.raises(TrainingDiverged, match=r"responses got a score that is not a number.* prompt \d+\."):
        sample.sample(
            spec.model_copy(update={"reward_models": (str(folder),)}), store, ConsoleReporter(stream=None), kept.extend
        )
    assert kept == []

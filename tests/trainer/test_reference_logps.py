from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from app.artifacts import ArtifactStore
from app.errors import StorageFull
from app.specs import Lora, ModelRef
from tests.trainer.conftest import build_model
from trainer.batching.chat import TokenSequence
from trainer.batching.packing import Packed
from trainer.models import reference_logps as module
from trainer.models.loading import load_causal_lm
from trainer.models.policy import TokenOutputs, completion_outputs
from trainer.models.reference_logps import completion_logps, key_of, model_digest, reference_logps


def groups_of(count: int, first: int = 0) -> list[list[TokenSequence]]:
    """Return prompts with two completions each, of many lengths."""
    generator = torch.Generator().manual_seed(5)
    rows = torch.randint(3, 200, (first + count, 40), generator=generator).tolist()
    return [
        [TokenSequence(row[: 2 + i % 7], row[9 : 10 + i % 5]), TokenSequence(row[: 2 + i % 7], row[20 : 21 + i % 11])]
        for i, row in enumerate(rows)
    ][first:]


class Counting:
    """A frozen reference model that counts the rows it is given."""

    def __init__(self, folder: Path) -> None:
        self.ref = ModelRef(base=str(folder))
        self.model = load_causal_lm(self.ref)
        self.sequences = 0
        self.ticks: list[int] = []

    def ask(self, store: ArtifactStore, groups: list[list[TokenSequence]]) -> torch.Tensor:
        calls = self.model.model.register_forward_pre_hook(self._count, with_kwargs=True)
        try:
            return reference_logps(store, self.ref, self.model, groups, False, 0, 2048, self.ticks.append)
        finally:
            calls.remove()

    def _count(self, module: object, arguments: object, named: dict[str, torch.Tensor]) -> None:
        self.sequences += len(named["input_ids"])


@pytest.fixture
def reference(tiny_model: Path) -> Counting:
    return Counting(tiny_model)


def files(store: ArtifactStore) -> list[Path]:
    return sorted((store.root / "reference-logps").glob("*"))


def test_sums_are_those_of_plain_transformers(reference: Counting, store: ArtifactStore, tiny_model: Path) -> None:
    groups = groups_of(9)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64).eval()
    expected = []
    for prompt, completion in (sequence for group in groups for sequence in group):
        with torch.no_grad():
            logits = plain(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
        expected.append(logits.log_softmax(-1)[range(len(completion)), list(completion)].sum())
    found = reference.ask(store, groups)
    torch.testing.assert_close(found, torch.stack(expected).float(), rtol=1e-4, atol=1e-4)


def test_only_what_is_missing_is_computed(reference: Counting, store: ArtifactStore) -> None:
    first = reference.ask(store, groups_of(20))
    assert reference.sequences == 40
    again = reference.ask(store, groups_of(20))
    assert reference.sequences == 40
    assert torch.equal(first, again)

    # Another process in another round: five rows are new, and one old row has a new rival.
    later = groups_of(25)
    later[3] = [later[3][0], TokenSequence(later[3][0].prompt, [77])]
    grown = reference.ask(store, later)
    assert reference.sequences == 40 + 2 * (5 + 1)
    assert torch.equal(grown[:6], first[:6])
    assert torch.equal(grown[8:40], first[8:])
    assert len(files(store)) == 1
    assert len(load_file(files(store)[0])["logps"]) == 40 + 10 + 1


def test_other_weights_and_another_precision_are_other_models(
    reference: Counting, store: ArtifactStore, tmp_path: Path
) -> None:
    groups = groups_of(4)
    first = reference.ask(store, groups)
    build_model(tmp_path / "other", seed=9)
    other = Counting(tmp_path / "other")
    assert not torch.allclose(other.ask(store, groups), first)
    assert other.sequences == 8

    half = Counting(Path(reference.ref.base))
    half.model = load_causal_lm(reference.ref, dtype=torch.bfloat16)
    assert not torch.equal(half.ask(store, groups), first)
    assert half.sequences == 8
    assert len(files(store)) == 3
    assert {path.stem.rpartition("-")[2] for path in files(store)} == {"float32", "bfloat16"}


def test_a_model_is_its_files_wherever_they_lie(tiny_model: Path, tmp_path: Path) -> None:
    build_model(tmp_path / "same")
    build_model(tmp_path / "different", seed=1)
    digest = model_digest(ModelRef(base=str(tiny_model)))
    assert digest is not None
    assert digest == model_digest(ModelRef(base=str(tmp_path / "same")))
    assert digest != model_digest(ModelRef(base=str(tmp_path / "different")))

    adapted = load_causal_lm(ModelRef(base=str(tiny_model)), Lora(rank=2), trainable=True)
    adapted.save_pretrained(tmp_path / "adapter")
    with_adapter = ModelRef(base=str(tiny_model), adapter=str(tmp_path / "adapter"))
    before = model_digest(with_adapter)
    assert before not in (None, digest)

    # It notices weights that were replaced in place.
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    assert model_digest(with_adapter) != before


def test_a_hub_name_that_is_nowhere_here_keeps_nothing(
    reference: Counting, store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    reference.ref = ModelRef(base="nobody/nothing-of-that-name")
    assert model_digest(reference.ref) is None
    first = reference.ask(store, groups_of(3))
    assert torch.equal(first, reference.ask(store, groups_of(3)))
    assert reference.sequences == 12
    assert files(store) == []


def test_a_damaged_file_counts_as_empty(reference: Counting, store: ArtifactStore) -> None:
    first = reference.ask(store, groups_of(5))
    path = files(store)[0]
    path.write_bytes(path.read_bytes()[:100])
    assert torch.equal(reference.ask(store, groups_of(5)), first)
    assert len(load_file(path)["logps"]) == 10


def test_two_writers_keep_what_both_computed_one_after_the_other(reference: Counting, store: ArtifactStore) -> None:
    dtype = torch.float32
    one, two = (module.KeptLogps(store, reference.ref, dtype) for _ in range(2))
    one.add([b"a" * 16], torch.tensor([-1.5]))
    two.add([b"b" * 16, b"c" * 16], torch.tensor([-2.5, float("nan")]))
    one.save()
    two.save()
    kept = module.KeptLogps(store, reference.ref, dtype)
    assert kept.known == {b"a" * 16: -1.5, b"b" * 16: -2.5}  # NaN and infinite numbers are not stored
    assert kept.lacks([[b"a" * 16], [b"a" * 16, b"c" * 16]]) == [1]


def test_a_killed_run_goes_on_to_the_same_bits(
    reference: Counting, store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at every chunk in turn: stored chunks are read, and later chunks have the same layout as without kills."""
    monkeypatch.setattr(module, "CHUNK", 8)
    monkeypatch.setattr(module, "SAVE_SECONDS", 0.0)
    whole = reference.ask(store, groups_of(30))

    class Killed(Exception):
        pass

    def tick(done: int) -> None:
        if done >= limit:
            raise Killed

    other = ArtifactStore(tmp_path / "other")
    for limit in (0, 8, 16, 24):
        with pytest.raises(Killed):
            reference_logps(other, reference.ref, reference.model, groups_of(30), False, 0, 2048, tick)
        assert sum(len(load_file(path)["logps"]) for path in files(other)) == 2 * limit
    resumed = reference_logps(other, reference.ref, reference.model, groups_of(30), False, 0, 2048)
    assert torch.equal(resumed, whole)


def test_a_full_disk_is_said_by_name(
    reference: Counting, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(StorageFull):
        reference.ask(store, groups_of(2))
    assert files(store) == []


def test_keys_tell_prompt_from_completion() -> None:
    keys = [key_of(TokenSequence([1, 2], [3])), key_of(TokenSequence([1], [2, 3])), key_of(TokenSequence([1, 2, 3]))]
    assert len(set(keys)) == 3
    assert {len(key) for key in keys} == {16}
    assert key_of(TokenSequence((1, 2), (3,))) == keys[0]


@pytest.mark.parametrize("share", [False, True])
def test_groups_of_any_size_and_none(reference: Counting, share: bool) -> None:
    groups = [groups_of(1)[0] * 3, [], groups_of(2)[1][:1]]

    def forward(packed: Packed) -> TokenOutputs:
        return completion_outputs(reference.model, packed)

    sums = completion_logps(forward, groups, share, 0, 2048)
    assert sums.shape == (7,)
    assert sums[:2].repeat(3) == pytest.approx(sums[:6], rel=1e-5)
    assert completion_logps(forward, [], share, 0, 2048).shape == (0,)

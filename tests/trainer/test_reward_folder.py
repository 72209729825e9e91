"""A reward model's folder has adapters and heads for a base stored once, and gives the same score everywhere."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from typer.testing import CliRunner

from app.artifacts import ArtifactStore
from app.errors import ModelUnavailable
from app.rows import PromptRow
from app.specs import Lora, ModelRef, Optimiser, RewardSpec
from tests.trainer.conftest import build_short_model, separable_pairs, trainable_parameters, user, write_rows
from trainer import cli
from trainer.batching.chat import ChatEncoder, TokenSequence
from trainer.batching.packing import pack
from trainer.evaluation.figures import reward_heads, reward_models_scorer
from trainer.models.loading import load_causal_lm, load_tokenizer
from trainer.models.policy import trunk_of
from trainer.models.saving import save_policy
from trainer.recipes import reward
from trainer.reporting import ConsoleReporter
from trainer.reward.model import load_reward_model, new_reward_model, save_reward_model
from trainer.reward.network import RewardModel
from trainer.speed.precision import computes_in
from trainer.training.critics import RewardCritic

QUESTION, ANSWERS = user("Apples or rocks?"), ["Apples, by far.", "7 rocks 12", "", "Green apples and a rock or two."]


@pytest.fixture
def policy(tiny_ref: ModelRef, tmp_path: Path) -> ModelRef:
    """A policy whose adapter has an effect: without it, every score differs."""
    torch.manual_seed(3)
    model = load_causal_lm(tiny_ref, Lora(rank=3, alpha=5), trainable=True)
    perturb(model)
    save_policy(model, load_tokenizer(tiny_ref), tmp_path / "policy")
    return ModelRef(base=tiny_ref.base, adapter=str(tmp_path / "policy"))


def perturb(model: torch.nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable_parameters(model):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


class Said(NamedTuple):
    row: PromptRow
    text: str


def responses() -> list[Any]:
    return [Said(PromptRow(id=1, messages=QUESTION), text) for text in ANSWERS]


def by_its_card(folder: Path, base: str, dtype: str) -> list[float]:
    """Return the scores of the answers from the README's code, without any of this project's code."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert "trainer" not in code
    assert "app" not in re.findall(r"import (\w+)|from (\w+)", code)
    assert code.count("torch.float32") == 1
    code = code.replace('"this folder"', repr(str(folder))).replace("torch.float32", f"torch.{dtype}")
    code = re.sub(r'^(FOLDER, BASE, DTYPE = [^,]+), "[^"]*"', rf"\1, {base!r}", code, flags=re.MULTILINE)
    names: dict[str, Callable[..., float]] = {}
    exec(code, names)
    return [names["score"](list(QUESTION), text) for text in ANSWERS]


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.06)])
def test_one_text_has_one_score_wherever_it_is_read(
    policy: ModelRef,
    store: ArtifactStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    tolerance: float,
) -> None:
    """It has one score at the end of training, in the report, in PPO, in sampling, by the card's code, and exported.

    Scores have standard deviation 1. bf16 products round to 8 bits, and the order differs between places.
    """
    made: list[RewardModel] = []
    original = reward.save_reward_model

    def keep(model: RewardModel, *rest: object) -> None:
        made.append(model)
        original(model, *rest)

    monkeypatch.setattr(reward, "save_reward_model", keep)
    scored: list[float] = []
    original_scorer = reward.text_scorer

    def report_scores(*arguments: object) -> reward.TextScorer:
        score = original_scorer(*arguments)
        scored.extend(score([reward.Variants(QUESTION, tuple(ANSWERS))])[0])
        return score

    monkeypatch.setattr(reward, "text_scorer", report_scores)
    spec = RewardSpec(
        trunk="trained",
        backbone=policy,
        snapshot=str(write_rows(tmp_path / "rows.jsonl", separable_pairs(60, 10))),
        lora=Lora(rank=4),
        optimiser=Optimiser(learning_rate=3e-3, epochs=1, precision=precision),
    )
    with store.folder("models/rm") as staging:
        reward.train(spec, store, ConsoleReporter(stream=None), staging)
    folder = store.resolve("models/rm")
    dtype = getattr(torch, precision)

    model, tokenizer = made[0], load_tokenizer(policy)
    encoder = ChatEncoder(tokenizer, 512)
    sequences = [TokenSequence(encoder.prompt(QUESTION), encoder.completion(text)) for text in ANSWERS]
    with torch.no_grad():
        expected = model.score(model(pack(sequences, tokenizer.pad_token_id, model.share))).tolist()
    assert max(expected) - min(expected) > 0.5
    assert scored == pytest.approx(expected, abs=tolerance)
    scorer = reward_models_scorer([folder], 512, dtype=dtype)  # the scorer of PPO and evaluation
    assert scorer(responses()).tolist() == pytest.approx(expected, abs=tolerance)
    heads = reward_heads([folder], 512, dtype=dtype)(responses())  # the heads of sampling, which stores them
    assert heads.mean(-1).tolist() == pytest.approx(expected, abs=tolerance)
    assert by_its_card(folder, policy.base, precision) == pytest.approx(expected, abs=tolerance)

    out = tmp_path / "exported"
    assert CliRunner().invoke(cli.app, ["export-reward", str(folder), str(out)]).exit_code == 0
    folders = [out] if (out / "config.json").exists() else [out / str(i) for i in range(model.members)]
    assert reward_models_scorer(folders, 512, dtype=torch.float32)(responses()).tolist() == pytest.approx(
        expected, abs=tolerance
    )
    plain = [by_its_card(each, "", "float32") for each in folders]
    assert torch.tensor(plain).mean(0).tolist() == pytest.approx(expected, abs=tolerance)


def test_a_folder_holds_no_copy_of_its_base(policy: ModelRef, tmp_path: Path) -> None:
    model = new_reward_model(policy, Lora(rank=4), ("reward", "style"), torch.float32, members=3)
    save_reward_model(model, load_tokenizer(policy), tmp_path / "rm")
    stored = sum(path.stat().st_size for path in (tmp_path / "rm").rglob("*.safetensors"))
    # Rank 4 next to the policy's 3 on q, k, v, o, gate, up and down of two layers, and two heads of 96: three times.
    sizes = [(96, 96), (96, 48), (96, 48), (96, 96), (96, 192), (96, 192), (192, 96)]
    numbers = 2 * sum((4 + 3) * (i + o) for i, o in sizes) + 2 * 96
    assert stored == pytest.approx(3 * 4 * numbers, rel=0.05)


def test_members_are_independent_columns(policy: ModelRef, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = new_reward_model(policy, Lora(rank=4), ("reward", "style"), torch.float32, members=3)
    perturb(model)
    model.offsets.copy_(torch.arange(6) / 8)
    tokenizer = load_tokenizer(policy)
    packed = pack([TokenSequence([5, 6, 7], [8, 9]), TokenSequence([5, 6], [10])], 2, share=True)
    with torch.no_grad():
        apart = [model(packed, member) for member in range(3)]
        together = model(packed)
    assert torch.equal(together, torch.cat(apart, -1))
    assert model.heads == ("reward/0", "style/0", "reward/1", "style/1", "reward/2", "style/2")
    assert model.score_heads == [0, 2, 4]
    assert all((apart[i] - apart[j]).abs().min() > 1e-3 for i, j in ((0, 1), (0, 2), (1, 2)))

    save_reward_model(model, tokenizer, tmp_path / "rm")
    loaded, _ = load_reward_model(tmp_path / "rm", torch.float32)
    only, _ = load_reward_model(tmp_path / "rm", torch.float32, member=2)
    with torch.no_grad():
        torch.testing.assert_close(loaded(packed), together, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(only(packed), apart[2], atol=1e-5, rtol=1e-5)
    bases = {id(m.get_base_layer().weight) for m in loaded.modules() if hasattr(m, "get_base_layer")}
    assert len(bases) == 14  # only one base in memory, for any number of members


def test_a_store_moves_with_its_reward_models(
    tiny_model: Path, store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_model, store.root / "models/base")
    ref = ModelRef(base=str(store.root / "models/base"))
    with store.folder("models/rm") as folder:
        save_reward_model(new_reward_model(ref, Lora(rank=2)), load_tokenizer(ref), folder, "models/base")
    moved = tmp_path / "elsewhere"
    store.root.rename(moved)
    load_reward_model(moved / "models/rm")
    written = [path.read_bytes() for path in (moved / "models/rm").rglob("*") if path.is_file()]
    assert not any(str(tmp_path).encode() in content for content in written)
    shutil.rmtree(moved / "models/base")
    with pytest.raises(ModelUnavailable, match=r"base models/base of the reward model .* does not exist"):
        load_reward_model(moved / "models/rm")


def test_a_reward_model_outside_the_store_finds_its_base_in_it(
    tiny_model: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model, store.root / "models/base")
    spec = RewardSpec(
        trunk="trained",
        backbone=ModelRef(base="models/base"),
        snapshot=str(write_rows(tmp_path / "rows.jsonl", separable_pairs(24, 0))),
        lora=Lora(rank=2),
        optimiser=Optimiser(learning_rate=1e-3),
    )
    (tmp_path / "outside").mkdir()
    reward.train(spec, store, ConsoleReporter(stream=None), tmp_path / "outside")
    assert load_reward_model(tmp_path / "outside")[0].members == 1


def test_another_base_of_the_same_shape_is_refused(tiny_ref: ModelRef, other_tiny_model: Path, tmp_path: Path) -> None:
    save_reward_model(new_reward_model(tiny_ref, Lora(rank=2)), load_tokenizer(tiny_ref), tmp_path / "rm")
    record = json.loads((tmp_path / "rm/base.json").read_text())
    (tmp_path / "rm/base.json").write_text(json.dumps(record | {"location": str(other_tiny_model)}))
    with pytest.raises(ModelUnavailable, match="made for other weights"):
        load_reward_model(tmp_path / "rm")


def test_a_policys_adapter_is_no_reward_model(policy: ModelRef) -> None:
    assert policy.adapter is not None
    with pytest.raises(ModelUnavailable, match="no weights for the head"):
        load_reward_model(policy.adapter)


def test_a_policy_that_no_adapter_can_hold_is_refused(policy: ModelRef) -> None:
    path = Path(policy.adapter or "", "adapter_config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_dora": True}))
    with pytest.raises(ModelUnavailable, match="more than add low-rank matrices"):
        new_reward_model(policy, Lora(rank=2))


def test_a_tokenizer_without_a_spare_token_is_left_as_it_is(tmp_path: Path) -> None:
    """GPT-2's only special token ends each turn, and its embeddings have no room for another token."""
    build_short_model(tmp_path / "base", 64)
    ref = ModelRef(base=str(tmp_path / "base"))
    tokenizer = load_tokenizer(ref)
    tokenizer.unk_token = tokenizer.bos_token = tokenizer.eos_token
    size = len(tokenizer)
    save_reward_model(new_reward_model(ref, Lora(rank=2)), tokenizer, tmp_path / "rm")
    assert json.loads((tmp_path / "rm/reward.json").read_text())["pad_token_id"] is None
    _, saved = load_reward_model(tmp_path / "rm")
    assert len(saved) == size


@pytest.mark.parametrize("lora", [None, Lora(rank=2)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_a_critic_begins_as_the_first_member(
    policy: ModelRef, tmp_path: Path, lora: Lora | None, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    model = new_reward_model(policy, Lora(rank=4), members=2, dtype=torch.float32)
    perturb(model)
    save_reward_model(model, load_tokenizer(policy), tmp_path / "rm")
    critic = RewardCritic(tmp_path / "rm", load_tokenizer(policy), lora, dtype)
    prompt, completion = [5, 6, 7], [8, 9]
    with torch.no_grad():
        values = critic(pack([TokenSequence(prompt, completion)], 2, share=False), torch.zeros(2, 1))
        seen = [model(pack([TokenSequence(prompt[:1], [*prompt[1:], *completion[:t]])], 2, False), 0) for t in (0, 1)]
    assert values.tolist() == pytest.approx([float(each) for each in seen], abs=tolerance)
    assert computes_in(trunk_of(critic.model.classifier)) == dtype
    learns = {name for name, parameter in critic.named_parameters() if parameter.requires_grad}
    assert all(("lora" in name and ".added." in name) or "score" in name for name in learns) is (lora is not None)

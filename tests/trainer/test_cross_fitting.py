"""Members of a reward model: each trains without one fold of the prompts and is measured on it; all are deployed."""

import json
import math
from pathlib import Path

import pytest
import torch

from app.artifacts import ArtifactStore
from app.rows import REWARD_VIEWS, PairRow, RewardView
from app.specs import Lora, ModelRef, Optimiser, RewardSpec
from tests.trainer.conftest import separable_pairs, write_rows
from trainer.batching.chat import ChatEncoder
from trainer.batching.data import Pair, encode_pairs
from trainer.batching.packing import pack
from trainer.evaluation.figures import reward_heads, reward_models_scorer
from trainer.models.loading import load_tokenizer
from trainer.recipes import reward
from trainer.reporting import ConsoleReporter, RewardResult
from trainer.reward.cross_fitting import Best, Folds, folds_of, schedule
from trainer.reward.model import load_reward_model
from trainer.reward.objective import elements_of


def spec_of(model: ModelRef, snapshot: Path | str = "", **changes: object) -> RewardSpec:
    settings = Optimiser(learning_rate=3e-3, epochs=2, batch_size=8, microbatch_size=8)
    return RewardSpec(trunk="trained", backbone=model, snapshot=str(snapshot), folds=4, optimiser=settings).model_copy(
        update=changes
    )


def pairs_of(ref: ModelRef, rows: list[PairRow]) -> list[Pair]:
    return encode_pairs(rows, ChatEncoder(load_tokenizer(ref), 256)).train


def with_prompts(rows: list[PairRow], prompts: int) -> list[PairRow]:
    """Spread the rows over this number of prompts."""
    return [row.model_copy(update={"messages": rows[i % prompts].messages}) for i, row in enumerate(rows)]


# ---- folds -----------------------------------------------------------------------------------------------------------


def test_folds_are_of_equal_size_and_no_prompt_is_in_two(tiny_ref: ModelRef) -> None:
    pairs = pairs_of(tiny_ref, with_prompts(separable_pairs(60, 0), 20))
    elements = elements_of(pairs)
    folds, notes = folds_of(spec_of(tiny_ref), pairs, elements)
    assert (folds.members, notes) == (4, ())
    assert [folds.of.count(fold) for fold in range(4)] == [15] * 4
    fold_of_prompt = {(str(pairs[e.pairs[0]].row.messages), fold) for e, fold in zip(elements, folds.of, strict=True)}
    assert len(fold_of_prompt) == 20
    assert folds_of(spec_of(tiny_ref), pairs, elements)[0] == folds
    assert folds_of(spec_of(tiny_ref, seed=1), pairs, elements)[0] != folds
    for member in range(4):
        assert {*folds.trained(member, 60)} ^ {*folds.held(member)} == set(range(60))
        assert len(folds.held(member)) == 15


@pytest.mark.parametrize(
    ("comparisons", "prompts", "members", "note"),
    [
        (40, 40, 4, ""),
        (39, 39, 3, "Cross-fitting uses 3 folds instead of 4"),
        (40, 2, 2, "Cross-fitting uses 2 folds instead of 4"),
        (29, 29, 1, "No cross-fitting: it needs about 30 training comparisons of several prompts; there are 29 of 29"),
        (60, 1, 1, "there are 60 of 1."),
    ],
)
def test_few_comparisons_or_prompts_make_fewer_folds_and_it_is_said(
    tiny_ref: ModelRef, comparisons: int, prompts: int, members: int, note: str
) -> None:
    pairs = pairs_of(tiny_ref, with_prompts(separable_pairs(comparisons, 0), prompts))
    folds, notes = folds_of(spec_of(tiny_ref), pairs, elements_of(pairs))
    assert folds.members == members
    assert note in "".join(notes)
    assert bool(note) == bool(notes)


def test_all_weights_make_one_member(tiny_ref: ModelRef) -> None:
    pairs = pairs_of(tiny_ref, separable_pairs(60, 0))
    folds, notes = folds_of(spec_of(tiny_ref, lora=None), pairs, elements_of(pairs))
    assert (folds.members, len(notes)) == (1, 1)
    assert folds_of(spec_of(tiny_ref, lora=None, folds=0), pairs, elements_of(pairs)) == (Folds((), 1), ())


def test_members_take_turns_and_never_meet_their_fold(tiny_ref: ModelRef) -> None:
    folds = Folds(tuple(i % 3 for i in range(30)), 3)
    epochs = schedule(spec_of(tiny_ref), folds, [1 + i % 7 for i in range(30)])
    assert len(epochs) == 2
    for steps in epochs:
        assert [member for member, _ in steps] == [0, 1, 2] * 3  # 20 elements in batches of 8
        for member in range(3):
            met = sorted(i for m, batch in steps if m == member for i in batch)
            assert met == [i for i in range(30) if i % 3 != member]
    assert epochs[0] != epochs[1]


# ---- a whole run -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RewardResult, list[PairRow]]:
    """A reward model of four members on 60 noisy comparisons of 30 prompts, with 10 held-out comparisons."""
    rows = separable_pairs(70, 10)
    # A tenth of the labels is wrong, so that members disagree and memorising differs from learning.
    rows = [
        row.model_copy(update={"p_b": 1 - row.p_b, "preference": -row.preference})
        if row.comparison_id % 10 == 0
        else row
        for row in rows
    ]
    rows = [*rows[:10], *with_prompts(rows[10:], 30)]
    root = tmp_path_factory.mktemp("cross-fitted")
    spec = spec_of(ModelRef(base=str(tiny_model)), write_rows(root / "rows.jsonl", rows), lora=Lora(rank=4))
    store = ArtifactStore(root / "store")
    with store.folder("models/rm") as staging:
        result = reward.train(spec, store, ConsoleReporter(stream=None), staging)
    return store.resolve("models/rm"), result, rows


def test_the_deployed_score_is_the_normalised_mean_of_members(
    run: tuple[Path, RewardResult, list[PairRow]], tiny_ref: ModelRef
) -> None:
    folder, result, rows = run
    model, tokenizer = load_reward_model(folder)
    assert model.members == result.members == 4
    encoded = encode_pairs(rows, ChatEncoder(tokenizer, 256))
    sequences = [s for pair in encoded.train for s in pair.sequences]
    with torch.no_grad():
        rewards = model(pack(sequences, tokenizer.pad_token_id, share=True))
    assert rewards.shape == (120, 4)
    assert rewards.mean(0).tolist() == pytest.approx([0] * 4, abs=1e-3)
    assert rewards.std(0).tolist() == pytest.approx([float(rewards[:, 0].std())] * 4, rel=1e-3)  # they count alike
    score = rewards.mean(-1)
    assert (score.mean().item(), score.std().item()) == (pytest.approx(0, abs=1e-3), pytest.approx(1, abs=1e-3))
    asked = [type("Said", (), {"row": row, "text": row.response_a}) for row in rows[:5]]
    heads = reward_heads([folder], 256)(asked)
    assert heads.shape == (5, 4)
    assert torch.equal(reward_models_scorer([folder], 256)(asked), heads.mean(-1))
    # This is how far members disagree on held-out responses, whose scores have a standard deviation of about 1.
    held = [s for pair in encoded.heldout for s in pair.sequences]
    with torch.no_grad():
        spread = model(pack(held, tokenizer.pad_token_id, share=True)).std(-1).mean()
    assert result.disagreement == pytest.approx(spread.item(), rel=1e-3)


def test_figures_and_views_are_of_the_member_that_never_saw_a_comparison(
    run: tuple[Path, RewardResult, list[PairRow]], tiny_ref: ModelRef
) -> None:
    """The expected values come only from the stored members: the seed determines each prompt's fold."""
    folder, result, rows = run
    report = json.loads((folder / "report.json").read_text())
    model, tokenizer = load_reward_model(folder)
    encoded = encode_pairs(rows, ChatEncoder(tokenizer, 1024))
    elements = elements_of(encoded.train)
    folds, _ = folds_of(spec_of(tiny_ref), encoded.train, elements)
    lines = (folder / REWARD_VIEWS).read_text().splitlines()
    views = {view.comparison_id: view for view in map(RewardView.model_validate_json, lines)}
    assert len(views) == 70
    assert not any(view.trained for view in views.values())

    right = []
    by_member: dict[int, list[bool]] = {member: [] for member in range(4)}
    for i, pair in enumerate([*encoded.train, *encoded.heldout]):
        with torch.no_grad():
            c, r = model(pack(pair.sequences, tokenizer.pad_token_id, share=True))
        gains = torch.tensor(result.gains)
        if i < len(encoded.train):
            fold = folds.of[i]
            d = ((c - r) / gains)[fold]
            by_member[fold].append(bool(d > 0))
        else:
            d = (c - r).mean() / gains.mean()  # the mean of members on the scale before normalisation
            for member in range(4):
                by_member[member].append(bool((c - r)[member] > 0))
        view = views[pair.row.comparison_id]
        p_chosen = view.p_b if pair.row.p_b > 0.5 else 1 - view.p_b
        assert p_chosen == pytest.approx(1 / (1 + math.exp(-d)), abs=1e-3)
        right.append(bool(d > 0))
    assert result.eval_accuracy == report["unseen"]["accuracy"] == pytest.approx(sum(right) / 70)
    assert report["cross_fitted"] == {
        **report["cross_fitted"],
        "pairs": 60,
        "accuracy": pytest.approx(sum(right[:60]) / 60),
    }
    assert report["heldout"] == {**report["heldout"], "pairs": 10, "accuracy": pytest.approx(sum(right[60:]) / 10)}
    for member, figures in enumerate(report["members"]):
        assert figures["accuracy"] == pytest.approx(sum(by_member[member]) / len(by_member[member]))
        assert (figures["trained_on"], figures["unseen"]) == (60 - folds.of.count(member), folds.of.count(member) + 10)
    card = (folder / "README.md").read_text()
    assert "Accuracy is cross-fitted" in card
    assert f"standard deviation of {result.disagreement:.3f}" in card


def test_labels_that_say_nothing_are_not_learned_by_heart_into_the_accuracy(
    tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path
) -> None:
    """Winners are random. The model memorises its training pairs, but the cross-fitted accuracy is about one half."""
    generator = torch.Generator().manual_seed(0)
    lots = torch.rand(80, generator=generator).tolist()
    rows = [
        row.model_copy(update={"p_b": 0.95, "preference": 3.0} if lot < 0.5 else {"p_b": 0.05, "preference": -3.0})
        for row, lot in zip(separable_pairs(80, 0), lots, strict=True)
    ]
    spec = spec_of(
        tiny_ref,
        write_rows(tmp_path / "rows.jsonl", rows),
        folds=2,
        optimiser=Optimiser(learning_rate=1e-2, epochs=12, batch_size=8),
    )
    with store.folder("models/rm") as staging:
        result = reward.train(spec, store, ConsoleReporter(stream=None), staging)
    report = json.loads((store.resolve("models/rm") / "report.json").read_text())
    # Within 3 standard errors of a share of 80.
    assert result.eval_accuracy == pytest.approx(0.5, abs=3 * 0.5 / 80**0.5)
    # Memorising makes unseen comparisons worse with every epoch, so an early epoch is kept.
    losses = [each["loss"] for each in report["epochs"]]
    assert len(losses) == 12
    assert losses[-1] > 1.2 * min(losses)
    assert result.kept_epoch == losses.index(min(losses)) + 1 < 12
    assert report["unseen"]["loss"] == pytest.approx(min(losses), abs=1e-4)
    assert [each["kept"] for each in report["epochs"]].count(True) == 1


def test_the_first_of_equally_good_epochs_is_kept() -> None:
    copies: list[dict[str, torch.Tensor]] = []

    def weights() -> dict[str, torch.Tensor]:
        copies.append({"copy": torch.tensor(len(copies) + 1)})
        return copies[-1]

    best = Best((), {})
    for loss in (0.7, 0.5, 0.5, 0.6):
        best = best.after(loss, weights)
    assert (best.kept, best.weights["copy"].item(), len(copies)) == (2, 2, 2)
    assert best.state == {"losses": (0.7, 0.5, 0.5, 0.6)}

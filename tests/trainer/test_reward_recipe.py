import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

from app.artifacts import ArtifactStore, digest_file, digest_folder
from app.errors import InvalidInput
from app.rows import REWARD_VIEWS, PairRow, RewardView
from app.specs import Lora, ModelRef, Optimiser, RewardSpec
from tests.trainer.conftest import separable_pairs, trainable_parameters, user, write_rows
from trainer.batching.chat import ChatEncoder
from trainer.batching.data import encode_pairs, read_pairs
from trainer.batching.packing import pack
from trainer.checkpoints import Checkpoints
from trainer.models.loading import load_tokenizer, seed_everything
from trainer.recipes import reward
from trainer.reporting import ConsoleReporter, RewardResult, RunCancelled, TrainingDiverged
from trainer.reward.model import load_reward_model, new_reward_model
from trainer.reward.objective import Element, RewardObjective
from trainer.reward.report import Variants


def spec_of(model: ModelRef, snapshot: Path, **changes: object) -> RewardSpec:
    settings = Optimiser(learning_rate=3e-3, epochs=2, batch_size=8, microbatch_size=8)
    return RewardSpec(trunk="trained", backbone=model, snapshot=str(snapshot), folds=0, optimiser=settings).model_copy(
        update=changes
    )


def train(spec: RewardSpec, store: ArtifactStore, location: str = "models/rm") -> tuple[RewardResult, ConsoleReporter]:
    reporter = ConsoleReporter(stream=None)
    with store.folder(location) as staging:
        result = reward.train(spec, store, reporter, staging)
    return result, reporter


def test_learns_a_preference_and_normalises_its_rewards(
    tiny_ref: ModelRef, separable_snapshot: Path, store: ArtifactStore
) -> None:
    result, reporter = train(spec_of(tiny_ref, separable_snapshot), store)
    assert result.eval_accuracy is not None
    assert result.eval_accuracy > 0.9
    assert (result.train_pairs, result.heldout_pairs, result.dropped) == (120, 40, ())
    assert reporter.last("eval_accuracy") == result.eval_accuracy
    assert reporter.last("eval_accuracy", "domain=fruit") > 0.9
    assert len(reporter.values("eval_accuracy")) == 2  # after each epoch
    assert {m.name for m in reporter.recorded if not m.name.startswith("eval_")} == {
        *("loss", "accuracy", "margin", "min_reward", "mean_reward", "max_reward", "grad_norm", "lr")
    }
    assert 0 <= reporter.last("eval_ece") <= 1
    assert -1 <= reporter.last("eval_length_bias") <= 1
    assert len(reporter.values("loss")) == 2 * 15

    folder = store.resolve("models/rm")
    model, tokenizer = load_reward_model(folder)
    pairs = encode_pairs(read_pairs(separable_snapshot), ChatEncoder(tokenizer, 512))
    with torch.no_grad():
        # Mean 0 and standard deviation 1 over the training responses.
        sequences = [s for pair in pairs.train for s in (pair.chosen, pair.rejected)]
        rewards = model(pack(sequences, tokenizer.pad_token_id, share=True))
        assert rewards.shape == (240, 1)
        assert rewards.mean().item() == pytest.approx(0, abs=1e-3)
        assert rewards.std().item() == pytest.approx(1, abs=1e-3)


def test_it_leaves_what_it_says_of_every_comparison(tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path) -> None:
    """It stores the probability that B is better, whichever side won, also for ties that hard labels leave out."""
    rows = separable_pairs(40, 10)
    rows += [
        row.model_copy(
            update={
                "comparison_id": row.comparison_id + 100,
                "messages": user(f"Tie {row.comparison_id}?"),
                "p_b": 0.5,
                "preference": 0.0,
            }
        )
        for row in separable_pairs(2, 0)
    ]
    snapshot = write_rows(tmp_path / "snapshot.jsonl", rows)
    spec = spec_of(tiny_ref, snapshot, soft_labels=False)
    result, reporter = train(spec, store)
    folder = store.resolve("models/rm")
    views = [RewardView.model_validate_json(line) for line in (folder / REWARD_VIEWS).read_text().splitlines()]
    by_id = {view.comparison_id: view for view in views}
    assert len(views) == len(by_id) == 42
    assert {id_ for id_, view in by_id.items() if view.trained} == {row.comparison_id for row in rows[10:40]}

    model, tokenizer = load_reward_model(folder)
    encoder = ChatEncoder(tokenizer, 512)
    for row in (*rows[:3], *rows[20:23], *rows[40:]):
        fitted = encoder.fit(row.messages, [encoder.completion(t) for t in (row.response_a, row.response_b)])
        assert fitted is not None
        with torch.no_grad():
            a, b = model(pack(fitted.sequences, tokenizer.pad_token_id, share=True))[:, 0].tolist()
        # Rewards are scaled to standard deviation 1; Bradley-Terry holds for their scale before.
        d = (b - a) / result.gains[0]
        assert by_id[row.comparison_id].p_b == pytest.approx(1 / (1 + math.exp(-d)), abs=1e-4)
    heldout_right = [(by_id[row.comparison_id].p_b > 0.5) == (row.p_b > 0.5) for row in rows[:10]]
    assert sum(heldout_right) / 10 == pytest.approx(reporter.last("eval_accuracy"))


def test_equal_specs_give_equal_files_and_another_seed_does_not(
    tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path
) -> None:
    snapshot = write_rows(tmp_path / "snapshot.jsonl", separable_pairs(30, 5))
    spec = spec_of(tiny_ref, snapshot, optimiser=Optimiser(learning_rate=3e-3, epochs=1))
    for location in ("models/a", "models/b"):
        train(spec, store, location)
    train(spec.model_copy(update={"seed": 1}), store, "models/c")
    digests = [digest_folder(store.resolve(f"models/{name}")) for name in "abc"]
    assert digests[0] == digests[1] != digests[2]


def test_microbatches_change_nothing(tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path) -> None:
    rows = [row.model_copy(update={"weight": 1 + row.comparison_id % 3}) for row in separable_pairs(40, 0)]
    snapshot = write_rows(tmp_path / "snapshot.jsonl", rows)
    runs = []
    for size, tokens in ((8, 4096), (3, 4096), (8, 300)):
        settings = Optimiser(learning_rate=3e-3, epochs=1, microbatch_size=size, microbatch_tokens=tokens)
        runs.append(train(spec_of(tiny_ref, snapshot, optimiser=settings), store)[1])
    for name in ("loss", "grad_norm", "accuracy", "margin"):
        for run in runs[1:]:
            assert run.values(name) == pytest.approx(runs[0].values(name), abs=1e-3)


def test_the_loss_of_the_first_step_by_hand(tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path) -> None:
    """One batch contains every row, so its loss is a weighted mean over the snapshot at the initial weights."""
    rows = [row.model_copy(update={"weight": 1 + row.comparison_id % 3}) for row in separable_pairs(24, 0)]
    snapshot = write_rows(tmp_path / "snapshot.jsonl", rows)
    settings = Optimiser(learning_rate=1e-3, batch_size=24, microbatch_size=24)
    _, reporter = train(spec_of(tiny_ref, snapshot, optimiser=settings, centering=0.01), store)

    seed_everything(0)
    model = new_reward_model(tiny_ref, Lora())
    tokenizer = load_tokenizer(tiny_ref)
    total = torch.zeros(())
    for pair in encode_pairs(rows, ChatEncoder(tokenizer, 512)).train:
        c, r = (model(pack([s], 0, share=False))[0, 0] for s in pair.sequences)
        loss = -0.95 * torch.log(1 / (1 + torch.exp(r - c))) - 0.05 * torch.log(1 / (1 + torch.exp(c - r)))
        total = total + pair.row.weight * (loss + 0.01 * (c + r) ** 2)
    total = total / sum(row.weight for row in rows)
    assert reporter.values("loss")[0] == pytest.approx(total.item(), abs=1e-5)
    gradients = torch.autograd.grad(total, trainable_parameters(model))
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    assert reporter.values("grad_norm")[0] == pytest.approx(norm.item(), rel=1e-4)


def test_ties_pull_rewards_together_only_as_soft_labels(
    tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path
) -> None:
    rows = separable_pairs(30, 0) + [
        row.model_copy(update={"comparison_id": 99, "p_b": 0.5, "preference": 0.0}) for row in separable_pairs(1, 0)
    ]
    snapshot = write_rows(tmp_path / "snapshot.jsonl", rows)
    settings = Optimiser(learning_rate=1e-3)
    assert train(spec_of(tiny_ref, snapshot, optimiser=settings), store)[0].train_pairs == 31
    hard = spec_of(tiny_ref, snapshot, optimiser=settings, soft_labels=False)
    result, _ = train(hard, store)
    assert result.train_pairs == 30
    assert result.dropped == ("1 comparisons are ties, which hard labels cannot say: 99",)
    # An aspect may have a winner although the comparison is a tie.
    styled = [row.model_copy(update={"aspects": {"style": row.p_b if row.p_b != 0.5 else 0.9}}) for row in rows]
    pairs = encode_pairs(styled, ChatEncoder(load_tokenizer(tiny_ref), 512))
    assert [len(p) for p in reward.usable(hard.model_copy(update={"aspects": ("style",)}), pairs)] == [31, 0, 0]


def test_without_held_out_rows_there_is_no_accuracy_to_report(
    tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path
) -> None:
    snapshot = write_rows(tmp_path / "snapshot.jsonl", separable_pairs(20, 0))
    result, reporter = train(spec_of(tiny_ref, snapshot, optimiser=Optimiser(learning_rate=1e-3)), store)
    assert result.eval_accuracy is None
    assert not [metric for metric in reporter.recorded if metric.name.startswith("eval_")]


@pytest.mark.parametrize(("rows", "decided"), [(separable_pairs(19, 0), 19), (separable_pairs(60, 50), 10)])
def test_too_few_pairs_are_refused_before_a_model_is_loaded(
    tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path, rows: list, decided: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reward, "new_reward_model", None)
    snapshot = write_rows(tmp_path / "snapshot.jsonl", rows)
    with pytest.raises(InvalidInput, match=f"at least 20 .* there are {decided} "):
        train(spec_of(tiny_ref, snapshot), store)
    assert not store.exists("models/rm")


def test_where_too_few_are_left_it_says_what_became_of_the_others(
    tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path
) -> None:
    rows = separable_pairs(22, 0)
    rows[:3] = [row.model_copy(update={"weight": 0.0}) for row in rows[:3]]
    snapshot = write_rows(tmp_path / "snapshot.jsonl", rows)
    with pytest.raises(InvalidInput, match=r"there are 19 .*\. 3 comparisons have weight 0: 1, 2, 3\."):
        train(spec_of(tiny_ref, snapshot), store)


def test_a_diverging_run_says_so_and_saves_nothing(
    tiny_ref: ModelRef, separable_snapshot: Path, store: ArtifactStore
) -> None:
    settings = Optimiser(learning_rate=1.0, epochs=8, warmup_ratio=0, max_grad_norm=1e30)
    with pytest.raises(TrainingDiverged, match=r"nan|inf|same reward"):
        train(spec_of(tiny_ref, separable_snapshot, optimiser=settings, centering=1e30), store)
    assert not store.exists("models/rm")


def test_a_last_step_that_diverges_is_named_too(tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path) -> None:
    """No loss is computed after the last step, so only the measured rewards show it."""
    snapshot = write_rows(tmp_path / "snapshot.jsonl", separable_pairs(24, 4))
    settings = Optimiser(learning_rate=1, batch_size=24, warmup_ratio=0).model_copy(update={"learning_rate": 1e25})
    with pytest.raises(TrainingDiverged, match="gives NaN or infinite rewards"):
        train(spec_of(tiny_ref, snapshot, optimiser=settings), store)
    assert not store.exists("models/rm")


def test_cancelling_saves_nothing(tiny_ref: ModelRef, separable_snapshot: Path, store: ArtifactStore) -> None:
    class Cancelling(ConsoleReporter):
        def progress(self, done: int, total: int, message: str = "") -> None:
            if done == 2:
                raise RunCancelled("Cancelled.")

        def metrics(self, step: int, values: Mapping[str, float], slice: str = "") -> None:
            assert step <= 2

    with pytest.raises(RunCancelled), store.folder("models/rm") as staging:
        reward.train(spec_of(tiny_ref, separable_snapshot), store, Cancelling(stream=None), staging)
    assert not store.exists("models/rm")


# ---- resuming --------------------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


class Killing(ConsoleReporter):
    """Ends a run at a step like SIGKILL: nothing happens afterwards."""

    def __init__(self, at: int) -> None:
        super().__init__(stream=None)
        self.at = at

    def metrics(self, step: int, values: Mapping[str, float], slice: str = "") -> None:
        super().metrics(step, values, slice)
        if step == self.at:
            raise Killed


@pytest.mark.parametrize(("lora", "folds"), [(Lora(rank=4), 0), (None, 0), (Lora(rank=4), 2)])
def test_a_killed_run_goes_on_to_the_same_bytes(
    tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path, lora: Lora | None, folds: int
) -> None:
    """It includes ties and an ensemble, whose parameters and bootstrap weights must be restored."""
    snapshot = write_rows(tmp_path / "snapshot.jsonl", separable_pairs(48 if folds else 40, 8))
    settings = Optimiser(learning_rate=1e-3, epochs=2, batch_size=8, microbatch_size=3)
    spec = spec_of(tiny_ref, snapshot, optimiser=settings, lora=lora, folds=folds, ties="davidson", ensemble=2)
    train(spec, store, "models/whole")
    reporters = []
    for at in (1, 3, 4, 7, 99):  # 4 ends an epoch
        checkpoints = Checkpoints(store, "checkpoints/run", spec, every_seconds=0)
        reporters.append(Killing(at))
        try:
            with store.folder("models/killed") as staging:
                reward.train(spec, store, reporters[-1], staging, checkpoints)
        except Killed:
            assert not store.exists("models/killed")
    assert [r.recorded[0].step for r in reporters] == [1, 1, 3, 4, 7]
    assert digest_folder(store.resolve("models/whole")) == digest_folder(store.resolve("models/killed"))


def test_a_run_that_diverges_keeps_its_last_checkpoint(
    tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path
) -> None:
    snapshot = write_rows(tmp_path / "snapshot.jsonl", separable_pairs(40, 8))
    settings = Optimiser(learning_rate=1.0, epochs=50, warmup_ratio=0, max_grad_norm=1e30)
    spec = spec_of(tiny_ref, snapshot, optimiser=settings, centering=1e17)
    checkpoints = Checkpoints(store, "checkpoints/run", spec, every_seconds=0)
    with pytest.raises(TrainingDiverged, match=r"nan|inf"), store.folder("models/rm") as staging:
        reward.train(spec, store, ConsoleReporter(stream=None), staging, checkpoints)
    kept = checkpoints.load()
    assert kept is not None
    assert all(tensor.isfinite().all() for name, tensor in kept.tensors.items() if name.startswith("weights/"))


# ---- rankings --------------------------------------------------------------------------------------------------------


def rankings(count: int, k: int = 4) -> list[PairRow]:
    """Return all pairs of `count` rankings of k responses each; responses with more apples are better."""
    rows = []
    for number in range(count):
        for i, j in itertools.combinations(range(k), 2):
            rows.append(
                PairRow(
                    comparison_id=len(rows) + 1,
                    prompt_id=number + 1,
                    messages=user(f"Apples {number}?"),
                    response_a="apple " * (i + 1),
                    response_b="apple " * (j + 1),
                    preference=2,
                    p_b=0.9,
                    ranking=number + 1,
                    split="train",
                )
            )
    return rows


def first_step(spec: RewardSpec, store: ArtifactStore) -> tuple[float, float]:
    reporter = Killing(1)
    with pytest.raises(Killed), store.folder("models/rm") as staging:
        reward.train(spec, store, reporter, staging)
    return reporter.last("loss"), reporter.last("grad_norm")


def test_a_ranking_is_one_element_with_the_loss_and_gradient_of_its_pairs(
    tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four rankings of four as 4 elements, and as 24 pairs: the mean is the same, because all have the same size."""
    rows = rankings(4)
    together = write_rows(tmp_path / "together.jsonl", rows)
    apart = write_rows(tmp_path / "apart.jsonl", [row.model_copy(update={"ranking": None}) for row in rows])
    settings = Optimiser(learning_rate=1e-3, batch_size=4, microbatch_size=2)
    spec = spec_of(tiny_ref, together, optimiser=settings)
    forwarded: list[int] = []
    original = reward.pack_elements

    def counting(elements: list, pad_id: int, share: bool) -> object:
        packed = original(elements, pad_id, share)
        forwarded.append(len(packed.packed.ends))
        return packed

    monkeypatch.setattr(reward, "pack_elements", counting)
    loss, grad_norm = first_step(spec, store)
    assert sum(forwarded) == 4 * 4  # every response once, not 6 times 2
    forwarded.clear()
    plain = first_step(
        spec_of(tiny_ref, apart, optimiser=settings.model_copy(update={"batch_size": 24, "microbatch_size": 24})), store
    )
    assert sum(forwarded) == 24 * 2
    assert (loss, grad_norm) == pytest.approx(plain, rel=1e-4)


def test_shared_and_plain_rows_train_alike(
    tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [row.model_copy(update={"comparison_id": row.comparison_id + 1000}) for row in separable_pairs(12, 4)]
    spec = spec_of(
        tiny_ref,
        write_rows(tmp_path / "rankings.jsonl", [*rankings(6), *pairs]),
        optimiser=Optimiser(learning_rate=1e-3, batch_size=4, microbatch_size=4),
    )
    shared = train(spec, store)[1]
    monkeypatch.setattr("trainer.reward.network.can_share", lambda trunk: False)
    plain = train(spec, store)[1]
    for name in ("loss", "grad_norm", "margin", "eval_loss"):
        assert plain.values(name) == pytest.approx(shared.values(name), abs=2e-3)


# ---- heads -----------------------------------------------------------------------------------------------------------


def test_an_aspects_head_learns_the_aspect_and_not_the_verdict(
    tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path
) -> None:
    """Labelers prefer apples. The separately rated style prefers the opposite, and only half of the rows rate it."""
    rows = [
        row.model_copy(update={"aspects": {"style": 1 - row.p_b}}) if row.comparison_id % 2 else row
        for row in separable_pairs(120, 40)
    ]
    snapshot = write_rows(tmp_path / "snapshot.jsonl", rows)
    result, reporter = train(spec_of(tiny_ref, snapshot, ensemble=2, aspects=("style",)), store)
    assert result.heads == ("reward/0", "reward/1", "style")
    assert result.eval_accuracy is not None
    assert result.eval_accuracy > 0.9
    report = json.loads((store.resolve("models/rm") / "report.json").read_text())
    assert report["heads"]["style"] == {"pairs": 20, "accuracy": reporter.last("eval_accuracy/style")}
    assert reporter.last("eval_accuracy/style") > 0.9
    model, tokenizer = load_reward_model(store.resolve("models/rm"))
    pairs = encode_pairs(rows, ChatEncoder(tokenizer, 512)).heldout
    with torch.no_grad():
        rewards = model(pack([s for p in pairs for s in p.sequences], tokenizer.pad_token_id, share=True))
    d = rewards[::2] - rewards[1::2]
    assert (d[:, :2] > 0).float().mean() > 0.9
    assert (d[:, 2] < 0).float().mean() > 0.9
    assert not torch.allclose(rewards[:, 0], rewards[:, 1], atol=1e-2)  # members differ
    # Its view of each comparison is the combined output of its normalised members, as deployed.
    lines = (store.resolve("models/rm") / REWARD_VIEWS).read_text().splitlines()
    p_b = {view.comparison_id: view.p_b for view in map(RewardView.model_validate_json, lines)}
    said = [p_b[row.comparison_id] if row.p_b > 0.5 else 1 - p_b[row.comparison_id] for *_, row in pairs]
    assert said == pytest.approx((d[:, :2].sum(-1) / sum(result.gains[:2])).sigmoid().tolist(), abs=1e-4)
    assert result.gains[0] != pytest.approx(result.gains[1], rel=1e-3)


@pytest.mark.parametrize(
    ("aspects", "message"),
    [(("style",), "head for style needs at least 20 .* there are 0"), (("reward",), "cannot be the name of an aspect")],
)
def test_aspects_that_cannot_be_learned_are_refused(
    tiny_ref: ModelRef, separable_snapshot: Path, store: ArtifactStore, aspects: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        train(spec_of(tiny_ref, separable_snapshot, aspects=aspects), store)


# ---- ties ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ties", "expected"), [("rao_kupper", math.log(3)), ("davidson", math.log(0.4 / 0.05**0.5))])
def test_the_tie_parameter_is_learned(
    tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path, ties: str, expected: float
) -> None:
    """Apples win 50 %, rocks win 10 %, and 40 % are ties. Only one d and one parameter give these shares.

    Rao-Kupper: s(d - n) = 1/2, so d = n, and s(-2 n) = 1/10: n = ln 3. Davidson: nu = P(tie) / sqrt(P(c) P(r)).
    """
    rows = [
        row.model_copy(update={"p_tie": 0.4, "p_b": 0.7 if row.p_b > 0.5 else 0.3}) for row in separable_pairs(88, 8)
    ]
    snapshot = write_rows(tmp_path / "snapshot.jsonl", rows)
    settings = Optimiser(learning_rate=3e-3, epochs=4)
    train(spec_of(tiny_ref, snapshot, ties=ties, centering=0.0, optimiser=settings), store)
    folder = store.resolve("models/rm")
    figures = json.loads((folder / "report.json").read_text())["ties"]
    assert figures["values"] == pytest.approx([expected], abs=0.1)
    assert figures["observed"] == pytest.approx(0.4)
    assert figures["predicted"] == pytest.approx(0.4, abs=0.03)
    assert f"Ties ({ties}, {figures['parameter']}" in (folder / "README.md").read_text()


@pytest.mark.parametrize(("soft", "share"), [(True, 1 / 6), (False, 1 / 3)])
def test_ties_are_counted_as_they_are_labelled(tiny_ref: ModelRef, soft: bool, share: float) -> None:
    """One labeler each: those who said tie may be wrong half of the time, which hard labels ignore."""
    rows = separable_pairs(30, 0)
    rows[:10] = [row.model_copy(update={"p_b": 0.5, "p_tie": 0.5, "preference": 0.0}) for row in rows[:10]]
    pairs = encode_pairs(rows, ChatEncoder(load_tokenizer(tiny_ref), 512)).train
    spec = RewardSpec(trunk="trained", backbone=tiny_ref, snapshot="", ties="davidson", soft_labels=soft)
    assert reward.tie_share(spec, pairs) == pytest.approx(share)
    # If all rewards are equal, the parameter gives the observed share from the start.
    objective = RewardObjective(new_reward_model(tiny_ref, None), spec.ties, reward.tie_share(spec, pairs))
    ties = objective.all_ties()
    assert ties is not None
    said = reward.said_by(objective.model, 0, pairs, torch.zeros(2, 30, 1), torch.ones(1), ties)
    figures = reward.tie_figures(spec, ties, said)
    assert figures is not None
    assert figures["predicted"] == pytest.approx(share)
    assert figures["observed"] == pytest.approx(share)


# ---- report ----------------------------------------------------------------------------------------------------------


def test_report_and_card_say_what_the_model_is_made_of(
    tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path
) -> None:
    snapshot = write_rows(tmp_path / "snapshot.jsonl", separable_pairs(60, 10))
    result, reporter = train(spec_of(tiny_ref, snapshot), store)
    folder = store.resolve("models/rm")
    report = json.loads((folder / "report.json").read_text())
    assert report["data"]["snapshot"] == digest_file(snapshot)
    assert report["model"]["reference_samples"] == result.reference_samples == 100
    assert report["heldout"]["accuracy"] == result.eval_accuracy
    assert report["gap"]["accuracy"] == result.eval_accuracy_gap == reporter.last("eval_accuracy_gap")
    assert sum(bar["pairs"] for bar in report["calibration"]["reliability"]) == 10
    assert report["probes"]["pairs"] == 10
    assert report["probes"]["adversarial"]["refusal"]["prompts"] == 10
    card = (folder / "README.md").read_text()
    for fact in (digest_file(snapshot), "last_valid_token", "100 responses", "Fewer than 256", "refusal"):
        assert fact in card


def test_each_rewritten_text_is_read_with_as_much_of_the_prompt_as_it_leaves_room_for(tiny_ref: ModelRef) -> None:
    """This is how the reward model reads a policy's responses: a long trick must not shorten other texts' prompt."""
    tokenizer = load_tokenizer(tiny_ref)
    whole = ChatEncoder(tokenizer, 10_000).prompt(user("Why?"))
    texts = ("a" * 5, "b" * 9, "c" * (len(whole) + 5))  # a byte is a token, and the end of the turn is one token

    def prompt_lengths(elements: Sequence[Element], message: str) -> torch.Tensor:
        return torch.tensor([[float(len(s.prompt))] for element in elements for s in element.sequences])

    model = new_reward_model(tiny_ref, None)
    score = reward.text_scorer(prompt_lengths, model, ChatEncoder(tokenizer, len(whole) + 6))
    n = len(whole)
    found = score([Variants(user("Why?"), texts), Variants(user("Why?"), texts[:1])])
    assert found == [[n, n - 4, None], [n]]

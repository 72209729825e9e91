"""The DPO family as whole runs. Expected values come from plain transformers in float64 and formulas written here."""

import itertools
import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.artifacts import ArtifactStore, digest_folder
from app.errors import InvalidInput
from app.rows import PairRow, ThumbRow
from app.specs import DPOSpec, Lora, ModelRef, Optimiser
from tests.trainer.conftest import build_short_model, separable_pairs, user, write_rows
from trainer.batching.chat import ChatEncoder, TokenSequence
from trainer.batching.data import encode_pairs
from trainer.checkpoints import Checkpoints
from trainer.recipes import dpo
from trainer.reporting import ConsoleReporter, PolicyResult, TrainingDiverged

# Every loss, with settings that differ from its defaults.
LOSSES: dict[str, dict[str, object]] = {
    "dpo": {},
    "cdpo": {"label_smoothing": 0.1},
    "soft": {"soft_labels": True},  # pairs on which labelers are 95% sure
    "soft_cdpo": {"soft_labels": True, "label_smoothing": 0.1},
    "robust": {"loss": "robust", "label_smoothing": 0.1},
    "ipo": {"loss": "ipo"},
    "ipo_average": {"loss": "ipo", "length_average": True},
    "hinge": {"loss": "hinge"},
    "kto": {"loss": "kto", "desirable_weight": 1.2, "undesirable_weight": 0.7},
    "orpo": {"loss": "orpo", "beta": 0.5},
    "simpo": {"loss": "simpo", "beta": 2.0, "gamma": 0.8},
    "rpo": {"nll_weight": 0.5},
}


def spec_of(model: ModelRef, snapshot: Path, **changes: object) -> DPOSpec:
    settings = Optimiser(learning_rate=1e-3, epochs=1, batch_size=8, microbatch_size=8)
    values = {"policy": model, "reference": model, "snapshot": str(snapshot), "optimiser": settings} | changes
    return DPOSpec.model_validate(values)


def train(
    spec: DPOSpec,
    store: ArtifactStore,
    location: str = "models/dpo",
    reporter: ConsoleReporter | None = None,
    checkpoints: Checkpoints | None = None,
) -> tuple[PolicyResult, ConsoleReporter]:
    reporter = reporter or ConsoleReporter(stream=None)
    with store.folder(location) as staging:
        result = dpo.train(spec, store, reporter, staging, checkpoints)
    return result, reporter


def write_thumbs(path: Path, rows: list[ThumbRow]) -> Path:
    write_rows(path, rows)
    return path


def thumbs(count: int, first: int = 1) -> list[ThumbRow]:
    """Apples are liked, rocks are not."""
    nouns = ("apples", "rocks")
    return [
        ThumbRow(id=i, messages=user(f"Thumb {i}?"), response=f"{nouns[i % 2]} {i}", liked=i % 2 == 0)
        for i in range(first, first + count)
    ]


class PlainLogps:
    """Log-probs of completions by transformers alone, in float64, one sequence at a time."""

    def __init__(self, folder: str) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()

    @torch.no_grad()
    def __call__(self, sequences: list[TokenSequence]) -> np.ndarray:
        logps = []
        for prompt, completion in sequences:
            logits = self.model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
            logps.append(torch.log_softmax(logits, -1)[range(len(completion)), list(completion)].sum().item())
        return np.array(logps)


def heldout_pairs(folder: str, rows: list[PairRow]) -> tuple[list[TokenSequence], list[TokenSequence]]:
    encoder = ChatEncoder(AutoTokenizer.from_pretrained(folder), 512)
    pairs = encode_pairs(rows, encoder, close_cut=False).heldout
    return [pair.chosen for pair in pairs], [pair.rejected for pair in pairs]


def test_raises_the_margin_and_the_saved_policy_has_it_in_plain_transformers(
    tiny_ref: ModelRef, separable_snapshot: Path, store: ArtifactStore
) -> None:
    result, reporter = train(spec_of(tiny_ref, separable_snapshot), store)
    names = {"rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen"}
    names |= {"logps/rejected", "loss"}
    assert {m.name for m in reporter.recorded} == names | {"grad_norm", "lr"} | {f"eval_{name}" for name in names}

    # At the start the policy is its reference: no margin, a loss of log 2.
    start, end = reporter.values("eval_rewards/margins")
    assert start == 0
    assert reporter.values("eval_rewards/accuracies")[0] == 0.5  # nothing is ordered yet: half right, as by a coin
    assert reporter.values("eval_loss")[0] == pytest.approx(math.log(2))
    assert reporter.values("loss")[0] == pytest.approx(math.log(2), abs=1e-3)
    assert end > 0.5
    assert reporter.last("eval_rewards/accuracies") > 0.9
    assert reporter.last("eval_rewards/accuracies", "domain=stone") > 0.9

    # The result has the last metrics of training and of held-out rows.
    assert result.metrics == {name: reporter.last(name) for name in names | {f"eval_{name}" for name in names}}

    chosen, rejected = heldout_pairs(tiny_ref.base, separable_pairs(160, 40))
    policy, base = PlainLogps(str(store.resolve("models/dpo"))), PlainLogps(tiny_ref.base)
    margins = (policy(chosen) - policy(rejected)) - (base(chosen) - base(rejected))
    assert 0.1 * margins.mean() == pytest.approx(end, abs=1e-3)
    assert reporter.last("eval_logps/chosen") == pytest.approx(policy(chosen).mean(), abs=1e-3)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def log_odds(logps: np.ndarray) -> np.ndarray:
    return logps - np.log(1 - np.exp(logps))


# Arguments: log-ratios x (2, N), chosen first; log-probs per token a (2, N); KTO's z; log-ratios per token t (2, N).
FORMULAS: Mapping[str, Callable[[np.ndarray, np.ndarray, float, np.ndarray], np.ndarray]] = {
    "dpo": lambda x, a, z, t: -np.log(sigmoid(0.1 * (x[0] - x[1]))),
    "cdpo": lambda x, a, z, t: (
        -0.9 * np.log(sigmoid(0.1 * (x[0] - x[1]))) - 0.1 * np.log(sigmoid(-0.1 * (x[0] - x[1])))
    ),
    "soft": lambda x, a, z, t: (
        -0.95 * np.log(sigmoid(0.1 * (x[0] - x[1]))) - 0.05 * np.log(sigmoid(-0.1 * (x[0] - x[1])))
    ),
    # With 10% flipped labels, the probability that chosen is better is 0.95 * 0.9 + 0.05 * 0.1.
    "soft_cdpo": lambda x, a, z, t: (
        -0.86 * np.log(sigmoid(0.1 * (x[0] - x[1]))) - 0.14 * np.log(sigmoid(-0.1 * (x[0] - x[1])))
    ),
    "robust": lambda x, a, z, t: (
        (-0.9 * np.log(sigmoid(0.1 * (x[0] - x[1]))) + 0.1 * np.log(sigmoid(-0.1 * (x[0] - x[1])))) / 0.8
    ),
    "ipo": lambda x, a, z, t: (x[0] - x[1] - 1 / 0.2) ** 2,
    "ipo_average": lambda x, a, z, t: (t[0] - t[1] - 1 / 0.2) ** 2,
    "hinge": lambda x, a, z, t: np.maximum(0, 1 - 0.1 * (x[0] - x[1])),
    "kto": lambda x, a, z, t: 0.5 * (1.2 * (1 - sigmoid(0.1 * (x[0] - z))) + 0.7 * (1 - sigmoid(0.1 * (z - x[1])))),
    "orpo": lambda x, a, z, t: -a[0] - 0.5 * np.log(sigmoid(log_odds(a[0]) - log_odds(a[1]))),
    "simpo": lambda x, a, z, t: -np.log(sigmoid(2.0 * (a[0] - a[1]) - 0.8)),
    "rpo": lambda x, a, z, t: -np.log(sigmoid(0.1 * (x[0] - x[1]))) - 0.5 * a[0],
}


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_its_formula_on_plain_log_probs_and_learns(
    name: str, tiny_ref: ModelRef, other_tiny_model: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    rows = separable_pairs(30, 6)
    snapshot = write_rows(tmp_path / "snapshot.jsonl", rows)
    settings = Optimiser(learning_rate=3e-3, epochs=2, batch_size=8, microbatch_size=3)
    changes = LOSSES[name] | {"policy": {"base": str(other_tiny_model)}, "optimiser": settings}
    _, reporter = train(spec_of(tiny_ref, snapshot, **changes), store)

    chosen, rejected = heldout_pairs(tiny_ref.base, rows)
    policy, reference = PlainLogps(str(other_tiny_model)), PlainLogps(tiny_ref.base)
    logps = np.stack([policy(chosen), policy(rejected)])
    ratios = logps - np.stack([reference(chosen), reference(rejected)])
    lengths = np.array([[len(sequence.completion) for sequence in side] for side in (chosen, rejected)])
    # KTO: every prompt with both answers to the next prompt; the last prompt with the answers to the first one.
    strangers = [
        TokenSequence(prompt.prompt, answer.completion)
        for prompt, answers in zip(
            chosen, [*zip(chosen[1:], rejected[1:], strict=True), (chosen[0], rejected[0])], strict=True
        )
        for answer in answers
    ]
    z = max(0.0, float((policy(strangers) - reference(strangers)).mean()))
    assert z > 0.1
    if name == "kto":
        assert reporter.values("eval_kl")[0] == pytest.approx(z, rel=1e-4)
    expected = FORMULAS[name](ratios, logps / lengths, z, ratios / lengths).mean()
    assert reporter.values("eval_loss")[0] == pytest.approx(expected, rel=1e-4)
    assert reporter.values("eval_logps/rejected")[0] == pytest.approx(logps[1].mean(), rel=1e-5)
    beta = LOSSES[name].get("beta", 0.1)
    rewards = beta * (logps / lengths if name in ("orpo", "simpo") else ratios)
    assert reporter.values("eval_rewards/chosen")[0] == pytest.approx(rewards[0].mean(), rel=1e-4)
    assert reporter.values("eval_rewards/margins")[0] == pytest.approx((rewards[0] - rewards[1]).mean(), rel=1e-3)

    before, _epoch, after = reporter.values("eval_rewards/margins")
    assert after > before
    assert reporter.last("eval_loss") < reporter.values("eval_loss")[0]


@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_a_step_is_that_of_the_formula_with_every_rows_own_weight_and_label(
    loss: str, tiny_ref: ModelRef, other_tiny_model: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    """Loss and gradient of one step on all rows, in small microbatches, against plain autograd in float64."""
    rows = [
        row.model_copy(update={"weight": 0.5 + i % 3, "p_b": p_b, "preference": 3.0 if p_b > 0.5 else -3.0})
        for (i, row), p_b in zip(
            enumerate(separable_pairs(22, 0)), itertools.cycle((0.6, 0.9, 0.3, 0.05)), strict=False
        )
    ]
    singles = [row.model_copy(update={"weight": 1.0 + row.id % 4}) for row in thumbs(7)] if loss == "kto" else []
    changes: dict[str, object] = {"soft_labels": True}
    if loss == "kto":
        changes = LOSSES["kto"] | {"thumbs": str(write_thumbs(tmp_path / "thumbs.jsonl", singles))}
    settings = Optimiser(learning_rate=1e-3, batch_size=64, microbatch_size=5, microbatch_tokens=400)
    changes |= {"policy": {"base": str(other_tiny_model)}, "optimiser": settings, "lora": None}
    snapshot = write_rows(tmp_path / "snapshot.jsonl", rows)
    _, reporter = train(spec_of(tiny_ref, snapshot, **changes), store)

    # For each row: its prompt, its responses and which were liked, its weight, the probability that the first wins.
    encoder = ChatEncoder(AutoTokenizer.from_pretrained(tiny_ref.base), 512)
    examples = []
    for row in rows:
        texts = [row.response_b, row.response_a] if row.p_b >= 0.5 else [row.response_a, row.response_b]
        answers = [(encoder.completion(text), i == 0) for i, text in enumerate(texts)]
        examples.append((encoder.prompt(row.messages), answers, row.weight, max(row.p_b, 1 - row.p_b)))
    for single in singles:
        answers = [(encoder.completion(single.response), single.liked)]
        examples.append((encoder.prompt(single.messages), answers, single.weight, 1.0))

    policy, reference = PlainLogps(str(other_tiny_model)), PlainLogps(tiny_ref.base)
    strangers = [
        TokenSequence(prompt, completion)
        for (prompt, *_), (_, answers, *_) in zip(examples, [*examples[1:], examples[0]], strict=True)
        for completion, _ in answers
    ]
    z = float((policy(strangers) - reference(strangers)).mean())
    assert z > 0.1
    total, weights = torch.zeros((), dtype=torch.float64), 0.0
    for prompt, answers, weight, p in examples:
        x = []
        for completion, _ in answers:
            logits = policy.model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
            logp = logits.log_softmax(-1)[range(len(completion)), completion].sum()
            x.append(0.1 * (logp - float(reference([TokenSequence(prompt, completion)])[0])))
        if loss == "dpo":
            terms = [-p * torch.sigmoid(x[0] - x[1]).log() - (1 - p) * torch.sigmoid(x[1] - x[0]).log()]
        else:
            terms = [
                1.2 * torch.sigmoid(0.1 * z - u) if liked else 0.7 * torch.sigmoid(u - 0.1 * z)
                for u, (_, liked) in zip(x, answers, strict=True)
            ]
        total, weights = total + weight * sum(terms), weights + weight * len(terms)
    (total / weights).backward()
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in policy.model.parameters()))
    assert reporter.values("loss") == [pytest.approx(total.item() / weights, rel=1e-5)]
    assert reporter.values("grad_norm") == [pytest.approx(norm, rel=1e-4)]


def test_a_ranking_counts_as_in_the_reward_model(tiny_ref: ModelRef) -> None:
    """All 6 pairs of 4 answers count as 3 comparisons in total, and a single pair as 1. Ties pass no weight on."""
    rows = [
        PairRow(
            comparison_id=i, prompt_id=1, messages=user("?"), response_a=a, response_b=b, preference=1, p_b=p_b,
            ranking=ranking, weight=2.0, split="train",
        )
        for i, (a, b, p_b, ranking) in enumerate(
            [*((a, b, 0.5 if (a, b) == ("x", "y") else 0.9, 7) for a, b in itertools.combinations("wxyz", 2)),
             ("w", "x", 0.9, None)]
        )
    ]  # fmt: skip
    encoder = ChatEncoder(AutoTokenizer.from_pretrained(tiny_ref.base), 512)
    examples, ties = dpo.examples_of(encode_pairs(rows, encoder).train)
    assert ties == [3]
    assert [example.weight for example in examples] == [1.0] * 5 + [2.0]


def test_a_loss_without_a_reference_loads_none(tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path) -> None:
    snapshot = write_rows(tmp_path / "snapshot.jsonl", separable_pairs(24, 4))
    nowhere = {"reference": {"base": "models/nowhere"}}
    for loss in ("orpo", "simpo"):
        result, _ = train(spec_of(tiny_ref, snapshot, loss=loss, **nowhere), store)
        assert result.metrics["eval_rewards/margins"] != 0
    assert not store.exists("reference-logps")


# ---- thumbs ----------------------------------------------------------------------------------------------------------


def test_thumbs_join_the_pairs_in_kto(tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path) -> None:
    pairs = separable_pairs(20, 10)
    snapshot = write_rows(tmp_path / "snapshot.jsonl", pairs)
    rows = [*thumbs(60), thumbs(1, 900)[0].model_copy(update={"response": "x" * 200})]
    rows.append(thumbs(1, 901)[0].model_copy(update={"weight": 0}))
    file = write_thumbs(tmp_path / "thumbs.jsonl", rows)
    settings = Optimiser(learning_rate=2e-3, epochs=2, batch_size=8)
    spec = spec_of(tiny_ref, snapshot, loss="kto", thumbs=str(file), max_length=128, optimiser=settings)
    result, reporter = train(spec, store)
    assert result.train_rows == 10 + 60
    assert sorted(result.dropped) == [
        "1 thumbs are longer than 128 tokens without their prompt: 900",
        "1 thumbs have weight 0: 901",
    ]
    # Nearly all rows about apples and rocks are thumbs here, so held-out pairs show that the policy learned from them.
    assert reporter.last("eval_rewards/accuracies") > 0.9
    # At the first step, policy equals reference, so every sigmoid is one half, for any kind and weight.
    assert reporter.values("loss")[0] == pytest.approx(0.5, abs=1e-6)
    assert reporter.values("kl")[0] == pytest.approx(0, abs=1e-5)


def test_two_thumbs_teach_what_their_pair_teaches(tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path) -> None:
    """One step on all pairs, and one on the same responses as thumbs, starting at the reference (z = 0)."""
    pairs = separable_pairs(24, 0)
    pairs = [
        row.model_copy(update={"p_b": 1.0, "preference": 3.0, "weight": 1 + row.comparison_id % 2}) for row in pairs
    ]
    singles = [
        ThumbRow(id=10 * row.comparison_id + i, messages=row.messages, response=text, liked=i == 1, weight=row.weight)
        for row in pairs
        for i, text in enumerate((row.response_a, row.response_b))
    ]
    paired = write_rows(tmp_path / "pairs.jsonl", pairs)
    empty = write_rows(tmp_path / "empty.jsonl", [])
    file = write_thumbs(tmp_path / "thumbs.jsonl", singles)
    policies = {}
    for name, snapshot, thumbs_file, size in (("pairs", paired, None, 24), ("thumbs", empty, str(file), 48)):
        settings = Optimiser(learning_rate=1e-3, batch_size=size, microbatch_size=7, epochs=1, warmup_ratio=0)
        spec = spec_of(tiny_ref, snapshot, loss="kto", thumbs=thumbs_file, optimiser=settings, lora=None)
        _, reporter = train(spec, store, f"models/{name}")
        policies[name] = reporter
    for name in ("loss", "grad_norm", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected"):
        assert policies["thumbs"].values(name) == pytest.approx(policies["pairs"].values(name), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (lambda row: row.liked, r"at least 20 liked and 20 disliked responses; there are 30 and 0"),
        (lambda row: row.id <= 24, r"there are 12 and 12"),
    ],
)
def test_too_few_thumbs_of_a_kind_are_refused(
    kept: Callable[[ThumbRow], bool], message: str, tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path
) -> None:
    snapshot = write_rows(tmp_path / "snapshot.jsonl", [])
    file = write_thumbs(tmp_path / "thumbs.jsonl", [row for row in thumbs(60) if kept(row)])
    with pytest.raises(InvalidInput, match=message):
        train(spec_of(tiny_ref, snapshot, loss="kto", thumbs=str(file)), store)


def test_kto_on_one_prompt_is_refused(tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path) -> None:
    snapshot = write_rows(
        tmp_path / "snapshot.jsonl",
        [row.model_copy(update={"messages": user("One?")}) for row in separable_pairs(24, 0)],
    )
    with pytest.raises(InvalidInput, match="all responses here answer the same prompt"):
        train(spec_of(tiny_ref, snapshot, loss="kto"), store)


@pytest.mark.parametrize(
    ("loss", "setting", "value"),
    [
        *[("ipo", "label_smoothing", 0.1), ("robust", "soft_labels", True), ("dpo", "length_average", True)],
        *[("dpo", "gamma", 0.6), ("orpo", "desirable_weight", 1.1), ("hinge", "undesirable_weight", 1.1)],
        ("dpo", "thumbs", "thumbs.jsonl"),
    ],
)
def test_a_setting_that_the_loss_does_not_read_is_refused(
    tiny_ref: ModelRef, loss: str, setting: str, value: object
) -> None:
    with pytest.raises(ValidationError, match=f"{setting}\n.*Loss {loss} does not use it"):
        spec_of(tiny_ref, Path("snapshot.jsonl"), loss=loss, **{setting: value})


def test_kto_learns_to_avoid_both_where_neither_is_any_good(
    tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path
) -> None:
    rows = sorted(separable_pairs(38, 8), key=lambda row: row.split, reverse=True)  # 30 to train on, then 8
    # Most labelers said both bad: as a tie; with one vote for B; too few of them; and on a held-out row.
    said = [(0, 1.0, 0.5), (1, 2 / 3, 0.625), (2, 0.5, 0.9), (30, 1.0, 0.5)]
    for i, both_bad, p_b in said:
        rows[i] = rows[i].model_copy(update={"both_bad": both_bad, "p_b": p_b, "preference": 3.0})
    snapshot = write_rows(tmp_path / "snapshot.jsonl", rows)
    encoder = ChatEncoder(AutoTokenizer.from_pretrained(tiny_ref.base), 256)
    kinds = {}
    for loss in ("kto", "dpo"):
        train_rows, heldout, _ = dpo.read_rows(spec_of(tiny_ref, snapshot, loss=loss), store, encoder)
        kinds[loss] = sorted(example.kinds for example in train_rows.examples)
        assert [example.kinds for example in heldout.examples] == [(dpo.CHOSEN, dpo.REJECTED)] * 7
    assert kinds["kto"] == [(dpo.CHOSEN, dpo.REJECTED)] * 28 + [(dpo.REJECTED,)] * 4
    assert kinds["dpo"] == [(dpo.CHOSEN, dpo.REJECTED)] * 29  # one vote for B makes a winner; a tie has none


# ---- the same again --------------------------------------------------------------------------------------------------


def test_equal_specs_give_equal_files_and_another_seed_does_not(
    tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path
) -> None:
    snapshot = write_rows(tmp_path / "snapshot.jsonl", separable_pairs(30, 0))
    for location, seed in (("models/a", 0), ("models/b", 0), ("models/c", 1)):
        train(spec_of(tiny_ref, snapshot, seed=seed), store, location)
    train(spec_of(tiny_ref, snapshot), ArtifactStore(tmp_path / "another"), "models/d")
    digests = [digest_folder(store.resolve(f"models/{name}")) for name in "abc"]
    digests.append(digest_folder(tmp_path / "another" / "models" / "d"))
    assert digests[0] == digests[1] == digests[3] != digests[2]


@pytest.mark.parametrize("name", ["dpo", "kto", "orpo"])
def test_microbatches_change_nothing(name: str, tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path) -> None:
    rows = [row.model_copy(update={"weight": 1 + row.comparison_id % 3}) for row in separable_pairs(30, 4)]
    snapshot = write_rows(tmp_path / "snapshot.jsonl", rows)
    changes = dict(LOSSES[name])
    if name == "kto":
        changes["thumbs"] = str(write_thumbs(tmp_path / "thumbs.jsonl", thumbs(9)))
    runs = []
    for size, tokens in ((8, 4096), (3, 4096), (8, 300)):
        settings = Optimiser(learning_rate=1e-3, epochs=1, microbatch_size=size, microbatch_tokens=tokens)
        runs.append(train(spec_of(tiny_ref, snapshot, optimiser=settings, **changes), store)[1])
    for metric in ("loss", "grad_norm", "rewards/margins", "logps/chosen", "eval_loss"):
        for run in runs[1:]:
            assert run.values(metric) == pytest.approx(runs[0].values(metric), rel=1e-3, abs=1e-3)


class Killed(Exception):
    pass


class KilledAfter(ConsoleReporter):
    """Ends the run at the given call, in any phase (reference, measuring, training); 0 never ends it."""

    def __init__(self, calls: int) -> None:
        super().__init__(stream=None)
        self.left = calls

    def _count(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed

    def metrics(self, step: int, values: Mapping[str, float], slice: str = "") -> None:
        self._count()
        super().metrics(step, values, slice)

    def progress(self, done: int, total: int, message: str = "") -> None:
        self._count()


# The losses differ here in soft labels, a reference point, thumbs, and having no reference.
@pytest.mark.parametrize("name", ["soft_cdpo", "kto", "orpo"])
def test_a_run_that_was_killed_goes_on_to_the_same_bits(
    name: str, tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path
) -> None:
    snapshot = write_rows(tmp_path / "snapshot.jsonl", separable_pairs(44, 6))
    changes = dict(LOSSES[name])
    if name == "kto":
        changes["thumbs"] = str(write_thumbs(tmp_path / "thumbs.jsonl", thumbs(9)))
    settings = Optimiser(learning_rate=1e-3, epochs=2, batch_size=8, microbatch_size=3)
    spec = spec_of(tiny_ref, snapshot, optimiser=settings, **changes)
    whole, _ = train(spec, store, "models/whole")

    # A new store, which contains no log-probs of the reference.
    other = ArtifactStore(tmp_path / "other")
    generator = random.Random(name)

    def go_on(calls: int) -> PolicyResult:
        checkpoints = Checkpoints(other, "checkpoints/run", spec, every_seconds=0)
        return train(spec, other, "models/resumed", KilledAfter(calls), checkpoints)[0]

    for _kill in range(4):
        with pytest.raises(Killed):
            go_on(generator.randint(1, 12))
        assert not other.exists("models/resumed")
    resumed = go_on(0)
    assert digest_folder(other.resolve("models/resumed")) == digest_folder(store.resolve("models/whole"))
    assert resumed.metrics == whole.metrics
    assert (resumed.tokens, resumed.train_rows) == (whole.tokens, whole.train_rows)


def test_a_run_that_goes_on_after_its_last_step_still_says_how_training_ended(
    tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path
) -> None:
    spec = spec_of(tiny_ref, write_rows(tmp_path / "snapshot.jsonl", separable_pairs(30, 6)))
    checkpoints = Checkpoints(store, "checkpoints/run", spec, every_seconds=0)
    first, reporter = train(spec, store, "models/first", checkpoints=checkpoints)
    again, silent = train(spec, store, "models/again", checkpoints=checkpoints)
    assert silent.values("loss") == []
    assert again.metrics == first.metrics
    assert again.metrics["loss"] == reporter.last("loss")
    assert digest_folder(store.resolve("models/again")) == digest_folder(store.resolve("models/first"))


# ---- policy and reference --------------------------------------------------------------------------------------------


def test_a_reference_that_has_answered_is_not_asked_again(
    tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path
) -> None:
    class Listening(ConsoleReporter):
        asked = 0

        def progress(self, done: int, total: int, message: str = "") -> None:
            self.asked += message == "log-probs of the reference"

    rows = separable_pairs(40, 8)
    asked = []
    runs = []
    for count, changes in ((40, {}), (40, {"beta": 0.2}), (30, {"loss": "hinge"})):
        snapshot = write_rows(tmp_path / f"{count}.jsonl", rows[:count])
        runs.append(train(spec_of(tiny_ref, snapshot, **changes), store, reporter=(listening := Listening(None)))[1])
        asked.append(listening.asked)
    assert asked[0] > 0
    assert asked[1:] == [0, 0]
    assert runs[1].values("eval_logps/chosen")[0] == runs[0].values("eval_logps/chosen")[0]


def test_continues_an_adapter_against_an_earlier_policy(
    tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path
) -> None:
    snapshot = write_rows(tmp_path / "snapshot.jsonl", separable_pairs(32, 8))
    first, reporter = train(spec_of(tiny_ref, snapshot), store, "models/first")
    policy = ModelRef(base=tiny_ref.base, adapter="models/first")
    # Against the base, the second round starts where the first ended. Against the first policy, it starts at no margin.
    against_base = spec_of(tiny_ref, snapshot, policy=policy)
    against_first = spec_of(tiny_ref, snapshot, policy=policy, reference=policy)
    _, base_reporter = train(against_base, store, "models/second")
    _, first_reporter = train(against_first, store, "models/third")
    margin = reporter.last("eval_rewards/margins")
    assert base_reporter.values("eval_rewards/margins")[0] == pytest.approx(margin, rel=1e-3)
    assert first_reporter.values("eval_rewards/margins")[0] == 0
    assert first_reporter.last("eval_rewards/margins") > 0
    assert first.train_rows == 24


def test_a_reference_of_another_architecture_is_read_in_the_way_it_can_be(
    tiny_ref: ModelRef, windowed_model: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    rows = separable_pairs(24, 4)
    snapshot = write_rows(tmp_path / "snapshot.jsonl", rows)
    _, reporter = train(spec_of(tiny_ref, snapshot, reference={"base": str(windowed_model)}), store)
    chosen, _rejected = heldout_pairs(tiny_ref.base, rows)
    expected = 0.1 * (PlainLogps(tiny_ref.base)(chosen) - PlainLogps(str(windowed_model))(chosen)).mean()
    assert reporter.values("eval_rewards/chosen")[0] == pytest.approx(expected, rel=1e-4)


def test_a_reference_with_few_positions_shortens_what_is_read(
    tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path
) -> None:
    build_short_model(tmp_path / "short", positions=60)
    rows = separable_pairs(26, 4)
    rows[5] = rows[5].model_copy(update={"response_a": "apples " * 20})
    snapshot = write_rows(tmp_path / "snapshot.jsonl", rows)
    result, _ = train(spec_of(tiny_ref, snapshot, reference={"base": str(tmp_path / "short")}), store)
    assert result.train_rows == 21
    assert f"longer than 60 tokens without their prompt: {rows[5].comparison_id}" in result.dropped[0]


@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_ties_are_left_out_by_name_and_full_weights_train(
    loss: str, tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path
) -> None:
    tied = [
        row.model_copy(
            update={"p_b": 0.5, "comparison_id": 900 + i, "split": split, "messages": user(f"The {split} one?")}
        )
        for i, (row, split) in enumerate(zip(separable_pairs(2, 0), ("heldout", "train"), strict=True))
    ]
    snapshot = write_rows(tmp_path / "snapshot.jsonl", tied + separable_pairs(24, 0))
    settings = Optimiser(learning_rate=1e-4)
    result, _ = train(spec_of(tiny_ref, snapshot, loss=loss, lora=None, optimiser=settings), store)
    assert result.train_rows == 24
    assert result.dropped == ("2 comparisons are ties, which do not say what to make likelier: 901, 900",)
    assert (store.resolve("models/dpo") / "model.safetensors").exists()


def test_too_few_pairs_are_refused(tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path) -> None:
    snapshot = write_rows(tmp_path / "snapshot.jsonl", separable_pairs(12, 0))
    with pytest.raises(InvalidInput, match=r"DPO needs at least 20 .* there are 12"):
        train(spec_of(tiny_ref, snapshot, lora=Lora(rank=2)), store)


@pytest.mark.parametrize("heldout", [0, 4])
def test_a_policy_that_the_last_step_broke_is_not_saved(
    heldout: int, tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path
) -> None:
    """No loss is computed after the last step, so only the measurements show it."""
    snapshot = write_rows(tmp_path / "snapshot.jsonl", separable_pairs(20 + heldout, heldout))
    settings = Optimiser(learning_rate=1, batch_size=20, warmup_ratio=0).model_copy(update={"learning_rate": 1e25})
    with pytest.raises(TrainingDiverged, match="gives NaN or infinite log-probs"):
        train(spec_of(tiny_ref, snapshot, optimiser=settings), store)
    assert not store.exists("models/dpo")


@pytest.mark.parametrize(("loss", "there_are"), [("dpo", "there are 14 "), ("kto", "there are 14 and 14")])
def test_a_refusal_says_what_became_of_the_others(
    loss: str, there_are: str, tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path
) -> None:
    rows = [
        row.model_copy(update={"weight": 0.0 if row.comparison_id <= 10 else 1.0}) for row in separable_pairs(24, 0)
    ]
    snapshot = write_rows(tmp_path / "snapshot.jsonl", rows)
    with pytest.raises(
        InvalidInput, match=there_are + r".* 10 comparisons have weight 0: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10\."
    ):
        train(spec_of(tiny_ref, snapshot, loss=loss), store)

"""Losses, gradients and log-probs of random models equal TRL's, and those of a slow computation in float64.

One batch contains cases that fail elsewhere: prompts and completions of odd lengths, a completion of one token, an
empty one, completions with and without EOS, and padding that is EOS. It is read in four layouts, including the packed
one that recipes train on.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tests.trainer import reference as slow
from trainer.algorithms.bradley_terry import bradley_terry_loss, centering_penalty, margin_of_strength
from trainer.algorithms.logprobs import projected_logps, scatter_to_mask, token_logps
from trainer.algorithms.preference import PairLogps, dpo_loss, kto_loss, kto_reference_point, preference_loss
from trainer.batching.chat import TokenSequence
from trainer.batching.packing import pack
from trainer.models.policy import Policy

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

EOS = 2  # `<|im_end|>`, which is also the padding token
VOCABULARY = 260


def random_ids(generator: torch.Generator, length: int) -> list[int]:
    return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()


def build_pairs(empty: bool = True) -> list[tuple[list[int], list[int], list[int]]]:
    """Return token ids of prompts, chosen and rejected completions."""
    generator = torch.Generator().manual_seed(0)
    lengths = [(7, 11, 4), (1, 1, 13), (12, 0 if empty else 2, 3), (5, 8, 8), (3, 2, 1)]
    pairs = [tuple(random_ids(generator, n) for n in row) for row in lengths]
    pairs[0][1][-1] = pairs[3][2][-1] = pairs[4][2][-1] = EOS
    pairs[1][0][0] = EOS  # a prompt that is one padding token
    return [(prompt, chosen, rejected) for prompt, chosen, rejected in pairs]


PAIRS = build_pairs()
SEQUENCES = [TokenSequence(p, c) for p, c, _ in PAIRS] + [TokenSequence(p, r) for p, _, r in PAIRS]
LENGTHS = torch.tensor([[len(c) for _, c, _ in PAIRS], [len(r) for _, _, r in PAIRS]])

# ---- our log-probs (S,) of sequences, by layout ----------------------------------------------------------------------

Reader = Callable[[Any, list[TokenSequence]], Tensor]


class Padded(NamedTuple):
    """All (B, T). The masks are True on tokens, and on tokens of completions."""

    input_ids: Tensor
    valid_mask: Tensor
    position_ids: Tensor
    completion_mask: Tensor


def pad(sequences: list[TokenSequence], side: str, pad_id: int = EOS) -> Padded:
    width = max(sequence.length for sequence in sequences)
    rows = []
    for prompt, completion in sequences:
        free = width - len(prompt) - len(completion)
        left, right = (free, 0) if side == "left" else (0, free)
        rows.append(
            (
                [pad_id] * left + [*prompt, *completion] + [pad_id] * right,
                [False] * left + [True] * (width - free) + [False] * right,
                [0] * left + list(range(width - free)) + [0] * right,
                [False] * (left + len(prompt)) + [True] * len(completion) + [False] * right,
            )
        )
    return Padded(*(torch.tensor(column) for column in zip(*rows, strict=True)))


def padded(side: str, chunk: int = 0) -> Reader:
    def read(model: Any, sequences: list[TokenSequence]) -> Tensor:
        batch = pad(sequences, side)
        hidden = model.base_model(
            input_ids=batch.input_ids, attention_mask=batch.valid_mask.long(), position_ids=batch.position_ids
        ).last_hidden_state
        predicts = batch.completion_mask[:, 1:]
        states, tokens = hidden[:, :-1][predicts], batch.input_ids[:, 1:][predicts]
        if chunk:
            logps = projected_logps(states, model.lm_head.weight, tokens, chunk=chunk, kept_logits=0).logps
        else:
            logps = token_logps(model.lm_head(states), tokens)
        return scatter_to_mask(logps, batch.completion_mask).sum(1)

    return read


def packed(share: bool) -> Reader:
    def read(model: Any, sequences: list[TokenSequence]) -> Tensor:
        # Adjacent sequences share their prompt: put pairs together, and restore the order afterwards.
        half = len(sequences) // 2
        order = [i for pair in range(half) for i in (pair, pair + half)] if len(sequences) > 1 else [0]
        rows = pack([sequences[i] for i in order], EOS, share)
        logps = rows.per_sequence(Policy(model)(rows).logps)
        return logps[torch.tensor(order).argsort()]

    return read


LAYOUTS: dict[str, Reader] = {
    "right padding": padded("right"),
    "left padding, in chunks": padded("left", chunk=5),
    "packed": packed(share=False),
    "shared prompts": packed(share=True),
}


# All four give the same log-probs and gradients. TRL's losses are compared with the two that differ most.
@pytest.fixture(params=["left padding, in chunks", "shared prompts"])
def read(request: pytest.FixtureRequest) -> Reader:
    return LAYOUTS[request.param]


# ---- TRL's trainers --------------------------------------------------------------------------------------------------


class Models(NamedTuple):
    folder: Path
    tokenizer: Any
    policy: Any
    reference: Any

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        self.policy.zero_grad()
        loss.backward()
        return {name: p.grad.clone() for name, p in self.policy.named_parameters() if p.grad is not None}


@pytest.fixture
def models(tiny_model: Path, other_tiny_model: Path) -> Models:
    policy, reference = (AutoModelForCausalLM.from_pretrained(path) for path in (tiny_model, other_tiny_model))
    return Models(tiny_model, AutoTokenizer.from_pretrained(tiny_model), policy, reference)


def trainer_of(kind: Any, config: Any, models: Models, folder: Path, row: dict[str, Any], **settings: Any) -> Any:
    """Return one of TRL's trainers on the two models; it needs `row` only to be created."""
    arguments = config(
        output_dir=str(folder), report_to=[], use_cpu=True, bf16=False, max_length=None,
        activation_checkpointing=False, disable_tqdm=True, **settings,
    )  # fmt: skip
    return kind(
        model=models.policy,
        args=arguments,
        train_dataset=Dataset.from_list([row, row]),
        processing_class=models.tokenizer,
        **({} if kind in (RewardTrainer, SFTTrainer) else {"ref_model": models.reference}),
    )


def assert_same_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    assert largest > 1e-4
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=2e-5 * largest, msg=name)


# ---- log-probs -------------------------------------------------------------------------------------------------------


def slow_logps(model: Any, sequences: list[TokenSequence]) -> list[float]:
    """Compute one sequence at a time without padding, in float64, with the softmax in Python."""
    model = model.double()
    sums = []
    for prompt, completion in sequences:
        ids = [*prompt, *completion]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].tolist()
        sums.append(sum(slow.log_prob(logits[t - 1], ids[t]) for t in range(len(prompt), len(ids))))
    model.float()
    return sums


@pytest.mark.parametrize("layout", LAYOUTS)
def test_log_probs_equal_the_slow_reference(models: Models, layout: str) -> None:
    ours = LAYOUTS[layout](models.policy, SEQUENCES).tolist()
    assert ours == pytest.approx(slow_logps(models.policy, SEQUENCES), rel=2e-6, abs=2e-6)
    assert ours[2] == 0  # the empty completion


@pytest.mark.parametrize("layout", LAYOUTS)
def test_log_probs_and_gradients_do_not_depend_on_batch_or_padding(models: Models, layout: str) -> None:
    read = LAYOUTS[layout]
    together = read(models.policy, SEQUENCES)
    alone = torch.cat([padded("right")(models.policy, [sequence]) for sequence in SEQUENCES])
    torch.testing.assert_close(together, alone, rtol=2e-6, atol=2e-6)
    # Each sequence has a different weight, so that none can replace another.
    weights = torch.linspace(-1, 2, len(SEQUENCES))
    assert_same_gradients(*(models.gradients((weights * logps).sum()) for logps in (together, alone)))


# ---- supervised fine-tuning ------------------------------------------------------------------------------------------


def test_sft_loss_and_gradients_equal_trls(models: Models, read: Reader, tmp_path: Path) -> None:
    trl = trainer_of(SFTTrainer, SFTConfig, models, tmp_path, {"prompt": "a", "completion": "b"})
    batch = pad(SEQUENCES, "right")
    labels = torch.where(batch.completion_mask, batch.input_ids, -100)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.valid_mask.long(), "labels": labels}
    their_loss = trl.compute_loss(models.policy, inputs)
    their_gradients = models.gradients(their_loss)
    our_loss = -read(models.policy, SEQUENCES).sum() / LENGTHS.sum()  # a mean over completion tokens
    assert our_loss.item() == pytest.approx(their_loss.item(), rel=1e-6)
    assert_same_gradients(models.gradients(our_loss), their_gradients)


# ---- losses on pairs -------------------------------------------------------------------------------------------------

# TRL's name, its settings; our name and settings
DPO_LOSSES: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "dpo": ({"loss_type": ["sigmoid"]}, "dpo", {}),
    "robust": ({"loss_type": ["robust"], "label_smoothing": 0.2}, "robust", {"label_smoothing": 0.2}),
    "ipo": ({"loss_type": ["ipo"]}, "ipo", {"length_average": True}),
    "hinge": ({"loss_type": ["hinge"]}, "hinge", {}),
}


def our_pairs(models: Models, read: Reader, pairs: list[int]) -> PairLogps:
    chosen = [SEQUENCES[i] for i in pairs]
    rejected = [SEQUENCES[i + len(PAIRS)] for i in pairs]
    with torch.no_grad():
        reference = read(models.reference, chosen + rejected).view(2, -1)
    return PairLogps(read(models.policy, chosen + rejected).view(2, -1), reference, LENGTHS[:, pairs])


@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4], [0]], ids=["a batch", "a batch of one"])
@pytest.mark.parametrize("loss", DPO_LOSSES)
def test_losses_and_gradients_equal_trls(
    models: Models, read: Reader, tmp_path: Path, loss: str, rows: list[int]
) -> None:
    theirs_settings, name, settings = DPO_LOSSES[loss]
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    trl = trainer_of(DPOTrainer, DPOConfig, models, tmp_path, row, beta=0.3, **theirs_settings)
    pairs = [PAIRS[i] for i in rows]
    batch = trl.data_collator([{"prompt_ids": p, "chosen_ids": c, "rejected_ids": r} for p, c, r in pairs])
    their_loss = trl.compute_loss(models.policy, batch)
    their_gradients = models.gradients(their_loss)

    ours = our_pairs(models, read, rows)
    our_loss = preference_loss(name, ours, beta=0.3, **settings).mean()
    assert our_loss.item() == pytest.approx(their_loss.item(), rel=1e-5, abs=1e-6)
    assert_same_gradients(models.gradients(our_loss), their_gradients)
    shown = trl._metrics["eval"]
    assert float(ours.policy[0].detach().mean()) == pytest.approx(shown["logps/chosen"][-1], rel=1e-5)
    assert float(ours.policy[1].detach().mean()) == pytest.approx(shown["logps/rejected"][-1], rel=1e-5)


def test_conservative_dpo_is_the_mix_of_trls_loss_with_labels_either_way(
    models: Models, read: Reader, tmp_path: Path
) -> None:
    """TRL's sigmoid loss ignores `label_smoothing`, so the smoothed loss is built from its plain loss, used twice."""
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    trl = trainer_of(DPOTrainer, DPOConfig, models, tmp_path, row, beta=0.3, loss_type=["sigmoid"])
    losses = []
    for swap in (False, True):
        kept = [(p, r, c) if swap else (p, c, r) for p, c, r in PAIRS]
        batch = trl.data_collator([{"prompt_ids": p, "chosen_ids": c, "rejected_ids": r} for p, c, r in kept])
        losses.append(trl.compute_loss(models.policy, batch))
    their_loss = 0.8 * losses[0] + 0.2 * losses[1]
    their_gradients = models.gradients(their_loss)
    ratios = our_pairs(models, read, list(range(len(PAIRS)))).log_ratios
    our_loss = dpo_loss(ratios[0] - ratios[1], 0.3, 0.2).mean()
    assert our_loss.item() == pytest.approx(their_loss.item(), rel=1e-5)
    assert_same_gradients(models.gradients(our_loss), their_gradients)


def test_kto_of_thumbs_equals_trls(models: Models, read: Reader, tmp_path: Path) -> None:
    """Unpaired: two likes and three dislikes. Each prompt with the next completion gives the reference point."""
    row = {"prompt": "a", "completion": "b", "label": True}
    settings = {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.7, "per_device_train_batch_size": 2}
    trl = trainer_of(KTOTrainer, KTOConfig, models, tmp_path, row, **settings)
    liked = [True, False, False, True, False]
    thumbs = [TokenSequence(p, c) for p, c, _ in build_pairs(empty=False)]
    mismatched = [TokenSequence(thumbs[i].prompt, thumbs[(i + 1) % 5].completion) for i in range(5)]
    batch = trl.data_collator(
        [
            {"prompt_ids": t.prompt, "completion_ids": t.completion, "KL_completion_ids": m.completion, "label": label}
            for t, m, label in zip(thumbs, mismatched, liked, strict=True)
        ]
    )
    their_loss = trl.compute_loss(models.policy, batch)
    their_gradients = models.gradients(their_loss)

    def log_ratios(sequences: list[TokenSequence]) -> Tensor:
        # An even number, because layouts of pairs need it.
        even = [*sequences, sequences[-1]]
        with torch.no_grad():
            reference = read(models.reference, even)
        return (read(models.policy, even) - reference)[: len(sequences)]

    z = kto_reference_point(log_ratios(mismatched))
    assert z.item() == pytest.approx(trl._metrics["eval"]["kl"][-1], rel=1e-4, abs=1e-5)
    our_loss = kto_loss(log_ratios(thumbs), torch.tensor(liked), z, 0.3, 1.5, 0.7).mean()
    assert our_loss.item() == pytest.approx(their_loss.item(), rel=1e-5)
    assert_same_gradients(models.gradients(our_loss), their_gradients)


@pytest.mark.parametrize("name", ["simpo", "orpo"])
def test_losses_without_a_reference_equal_trls(models: Models, read: Reader, name: str) -> None:
    """TRL's own functions on the model's logits. Its ORPO adds the NLL of prompt and response, ours of the response."""
    pairs = build_pairs(empty=False)
    sequences = [TokenSequence(p, c) for p, c, _ in pairs] + [TokenSequence(p, r) for p, _, r in pairs]
    batch = pad(sequences, "right")
    labels = torch.where(batch.completion_mask, batch.input_ids, -100)
    logits = models.policy(input_ids=batch.input_ids, attention_mask=batch.valid_mask.long()).logits
    averages = (CPOTrainer if name == "simpo" else ORPOTrainer).get_batch_logps(logits, labels, average_log_prob=True)
    settings = SimpleNamespace(
        alpha=0.0, loss_type="simpo", beta=2.0, simpo_gamma=0.8, label_smoothing=0.0,
        accelerator=SimpleNamespace(device=torch.device("cpu")),
    )  # fmt: skip
    if name == "simpo":
        theirs = CPOTrainer.cpo_loss(settings, averages[:5], averages[5:])[0]
    else:
        theirs = -averages[:5] - ORPOTrainer.odds_ratio_loss(settings, averages[:5], averages[5:])[0]
    their_gradients = models.gradients(theirs.mean())

    lengths = torch.tensor([len(s.completion) for s in sequences]).view(2, 5)
    ours = preference_loss(
        name, PairLogps(read(models.policy, sequences).view(2, 5), None, lengths), beta=2.0, gamma=0.8
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert_same_gradients(models.gradients(ours.mean()), their_gradients)


# ---- reward models ---------------------------------------------------------------------------------------------------


@pytest.fixture
def classifier(models: Models) -> Models:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(models.folder, num_labels=1)
    return models._replace(policy=model)


@pytest.mark.parametrize("margin", [False, True])
@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4], [0]], ids=["a batch", "a batch of one"])
def test_reward_losses_and_gradients_equal_trls(
    classifier: Models, tmp_path: Path, margin: bool, rows: list[int]
) -> None:
    trl = trainer_of(
        RewardTrainer, RewardConfig, classifier, tmp_path, {"chosen": "a", "rejected": "b"},
        center_rewards_coefficient=0.01,
    )  # fmt: skip
    # transformers pools by the padding token's id, so the padding token here ends no sequence.
    classifier.policy.config.pad_token_id = 0
    chosen, rejected = [SEQUENCES[i] for i in rows], [SEQUENCES[i + len(PAIRS)] for i in rows]
    batch = pad(chosen + rejected, "right", 0)
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": batch.valid_mask.long()}
    margins = margin_of_strength(torch.tensor([3.0, 1.0, 2.0, 0.5, 0.0])[: len(rows)], "large") if margin else None
    if margins is not None:
        inputs["margin"] = margins
    their_loss = trl.compute_loss(classifier.policy, dict(inputs))
    their_gradients = classifier.gradients(their_loss)

    last = [sequence.length - 1 for sequence in chosen + rejected]
    hidden = classifier.policy.base_model(
        input_ids=batch.input_ids, attention_mask=batch.valid_mask.long()
    ).last_hidden_state
    rewards = classifier.policy.score(hidden[torch.arange(len(last)), last]).view(2, -1)
    our_loss = (bradley_terry_loss(*rewards, margin=margins) + 0.01 * centering_penalty(*rewards)).mean()
    assert our_loss.item() == pytest.approx(their_loss.item(), rel=1e-6)
    assert_same_gradients(classifier.gradients(our_loss), their_gradients)

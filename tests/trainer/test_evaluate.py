"""Evaluation: its metrics by arithmetic, the recipe against plain transformers."""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from app.artifacts import ArtifactStore
from app.errors import InvalidInput, ModelUnavailable
from app.rows import AnswersRow, PromptRow
from app.specs import EvaluateSpec, Generation, Lora, ModelRef
from tests.trainer.conftest import build_reward_model, build_short_model, user, write_rows
from trainer.batching.chat import ChatEncoder
from trainer.evaluation import figures as evaluation
from trainer.evaluation.figures import best_of_n, measure, reward_models_scorer
from trainer.models.loading import load_causal_lm, load_tokenizer
from trainer.models.saving import save_policy
from trainer.recipes import evaluate
from trainer.recipes.sample import Completion
from trainer.reporting import ConsoleReporter, TrainingDiverged
from trainer.sampling.responses import Response, Sample, sample_seed
from trainer.speed import precision


def response(text: str, tokens: int, finished: bool = True, prompt_id: int = 1, **slices: str) -> Response:
    return Response(
        PromptRow(id=prompt_id, messages=user("Q"), slices=slices), 0, 0, [5], Sample([7] * tokens, [], finished), text
    )


def test_metrics_by_slice() -> None:
    responses = [
        response("I'm sorry.", 2, domain="safety"),
        response("a b c a b c", 4, finished=False, domain="facts"),
        response("Fine.", 6, domain="facts"),
    ]
    logps = [torch.tensor([-1.0, -1]), torch.tensor([-1.0, -1, -1, -1]), torch.zeros(6)]
    reference = [torch.tensor([-1.5, -1]), torch.tensor([-2.0, -1, -1, -2]), torch.full((6,), -0.5)]
    measured = measure(responses, torch.tensor([1.0, 2, 6]), logps, reference)
    assert set(measured) == {"", "domain=safety", "domain=facts"}
    everything = measured[""]
    assert everything["eval_objective/scores"] == pytest.approx(3)
    assert everything["eval_objective/scores_std"] == pytest.approx((14 / 3) ** 0.5)
    assert everything["eval_objective/kl"] == pytest.approx((0.5 + 2 + 3) / 3)
    assert everything["eval_objective/kl_per_token"] == pytest.approx(5.5 / 12)
    # k3 of 0.5; of 1, 0, 0, 1; and of 0.5 six times
    assert everything["eval_objective/kl_k3"] == pytest.approx((7 * (math.exp(-0.5) - 0.5) + 2 * math.exp(-1)) / 3)
    assert everything["eval_length"] == 4
    assert everything["eval_finished"] == pytest.approx(2 / 3)
    assert everything["eval_refusals"] == pytest.approx(1 / 3)
    assert everything["eval_repetition"] == pytest.approx(1 / 4 / 3)
    assert measured["domain=facts"]["eval_objective/scores"] == 4
    assert measured["domain=facts"]["eval_samples"] == 2
    assert measured["domain=safety"]["eval_refusals"] == 1


def test_best_of_n_is_the_best_of_each_prompt_at_its_distance_from_the_reference() -> None:
    responses = [response("Fine.", 1, prompt_id=i, domain="facts" if i < 3 else "safety") for i in (1, 2, 1, 2, 1, 3)]
    scores = torch.tensor([0.5, -1, 2, -3, 1, 4])  # the best are those with 2, -1 and 4, of 3, 2 and 1
    kl = [torch.tensor([x]) for x in (10.0, 0.25, 0.5, 10, 10, 0.125)]
    measured = measure(responses, scores, kl, [torch.zeros(1)] * 6)
    three, two = math.log(3) - 2 / 3, math.log(2) - 1 / 2
    assert measured[""]["eval_objective/best_of_n_scores"] == pytest.approx(5 / 3)
    assert measured[""]["eval_objective/best_of_n_kl"] == pytest.approx((three + 0.5 + two + 0.25 + 0.125) / 3)
    assert measured["domain=facts"]["eval_objective/best_of_n_scores"] == pytest.approx(1 / 2)
    assert measured["domain=facts"]["eval_objective/best_of_n_kl"] == pytest.approx((three + 0.5 + two + 0.25) / 2)
    assert measured["domain=safety"]["eval_objective/best_of_n_kl"] == pytest.approx(0.125)


@pytest.mark.parametrize("n", [2, 4])
def test_best_of_n_of_a_policy_that_is_not_the_reference_has_the_kl_of_its_distribution(n: int) -> None:
    """Three answers with known probabilities and different scores: P(max <= i) gives the best answer's distribution."""
    policy, reference = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    generator = np.random.default_rng(0)
    drawn = generator.choice(3, size=(20_000, n), p=policy)
    scores, kl = torch.tensor(drawn.flatten()).float(), torch.tensor(np.log(policy / reference)[drawn.flatten()])
    mean_score, bound = best_of_n(np.repeat(np.arange(20_000), n).tolist(), scores, kl)
    best = np.diff(np.cumsum(policy) ** n, prepend=0)
    assert mean_score == pytest.approx(best @ [0, 1, 2], abs=0.01)
    exact = best @ np.log(best / reference)
    # Answers can repeat, so the true divergence is lower, but only by the effect of ties on KL(best || policy).
    ties = math.log(n) - (n - 1) / n - best @ np.log(best / policy)
    assert ties > 0
    assert bound == pytest.approx(exact + ties, abs=0.01)


def test_scores_are_those_of_plain_transformers(reward_folder: Path) -> None:
    responses = [response("Yes." * i, 3, finished=i % 2 == 0) for i in range(5)]
    scores = reward_models_scorer([reward_folder], max_length=256)(responses)
    classifier = AutoModelForSequenceClassification.from_pretrained(reward_folder)
    encoder = ChatEncoder(load_tokenizer(str(reward_folder)), 256)
    for i, item in enumerate(responses):
        ids = [*encoder.prompt(item.row.messages), *encoder.completion(item.text)]
        with torch.no_grad():
            expected = classifier(torch.tensor([ids])).logits[0, 0].item() - 0.25
        assert scores[i].item() == pytest.approx(expected, abs=1e-5)


def test_responses_longer_than_is_read_are_scored_by_their_ends_and_counted(
    reward_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # It has as many tokens as the model reads, with the end of the turn. One has to go, so that a prompt fits.
    long, full = response("No. " * 40 + "Yes." * 40, 3), response("No!" + "Yes." * 15, 3)
    encoder = ChatEncoder(load_tokenizer(str(reward_folder)), 64)
    assert len(encoder.completion(full.text)) == 64
    scores = reward_models_scorer([reward_folder], max_length=64)([long, full, response("Yes.", 3)])
    assert "2 of 3 responses are longer than the reward model's 64 tokens" in caplog.text
    classifier = AutoModelForSequenceClassification.from_pretrained(reward_folder)
    for item, score in zip((long, full), scores.tolist(), strict=False):
        ids = [encoder.prompt(item.row.messages)[-1], *encoder.completion(item.text)[-63:]]
        with torch.no_grad():
            expected = classifier(torch.tensor([ids])).logits[0, 0].item() - 0.25
        assert score == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("combine", ["mean", "min", "mean_minus_variance"])
def test_the_heads_of_all_reward_models_make_one_score(tiny_ref: ModelRef, tmp_path: Path, combine: Any) -> None:
    folders = [
        build_reward_model(tmp_path / "a", tiny_ref, 1, ("reward/0", "reward/1", "style")),
        build_reward_model(tmp_path / "b", tiny_ref, 2),
    ]
    questions = [
        PromptRow(id=i, messages=user("Why?" if i < 3 else "How?"), slices={}) for i in range(5)
    ]  # of one prompt they are read together
    responses = [Response(row, 0, 0, [5], Sample([7], [], True), "So. " * row.id) for row in questions]
    scores = reward_models_scorer(folders, 256, combine, variance_weight=0.5)(responses)
    encoder = ChatEncoder(load_tokenizer(str(folders[0])), 256)
    classifiers = [AutoModelForSequenceClassification.from_pretrained(folder) for folder in folders]
    for response, score in zip(responses, scores.tolist(), strict=True):
        ids = torch.tensor([[*encoder.prompt(response.row.messages), *encoder.completion(response.text)]])
        with torch.no_grad():
            a, b = (classifier(ids).logits[0].tolist() for classifier in classifiers)
        heads = np.array([a[0] - 0.25, a[1] - 0.5, b[0] - 0.25])  # style is not used
        expected = {"mean": heads.mean(), "min": heads.min(), "mean_minus_variance": heads.mean() - 0.5 * heads.var()}
        assert score == pytest.approx(expected[combine], abs=1e-5)


def test_a_classifier_from_elsewhere_scores_by_its_only_label(reward_folder: Path) -> None:
    before = reward_models_scorer([reward_folder], 256)([response("Yes.", 3)])
    config = json.loads((reward_folder / "config.json").read_text())
    del config["id2label"], config["label2id"], config["reward_offsets"]
    config["num_labels"] = 1
    (reward_folder / "config.json").write_text(json.dumps(config))
    after = reward_models_scorer([reward_folder], 256)([response("Yes.", 3)])
    assert after.item() == pytest.approx(before.item() + 0.25)


@pytest.mark.parametrize("bare", [False, True])
def test_the_recipe_measures_what_plain_transformers_says(
    tiny_ref: ModelRef, other_tiny_model: Path, reward_folder: Path, store: ArtifactStore, tmp_path: Path, bare: bool
) -> None:
    """The reference is an adapter, another model, or the bare base model of the adapter."""
    torch.manual_seed(0)
    adapted = load_causal_lm(tiny_ref, Lora(rank=4), trainable=True)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    save_policy(adapted, load_tokenizer(tiny_ref), tmp_path / "adapter")
    base = tiny_ref.base if bare else str(other_tiny_model)
    prompts = tmp_path / "prompts.jsonl"
    rows = [
        PromptRow(id=i, messages=user("q" * (1 + 5 * i)), slices={"domain": "a" if i < 2 else "b"}) for i in range(4)
    ]
    write_rows(prompts, rows)
    spec = EvaluateSpec(
        policy=ModelRef(base=tiny_ref.base, adapter=str(tmp_path / "adapter")),
        reference=ModelRef(base=base),
        reward_models=(str(reward_folder),),
        prompts=str(prompts),
        generation=Generation(samples_per_prompt=2, max_new_tokens=10, temperature=0.8, batch_size=4),
        max_length=128,
        seed=5,
    )
    completions: list[Completion] = []
    seen: list[Response] = []

    def spying_scorer(responses: list[Response]) -> torch.Tensor:
        seen.extend(responses)
        return torch.arange(len(responses)).float()

    reporter = ConsoleReporter(stream=None)
    result = evaluate.evaluate(spec, store, reporter, completions.extend, spying_scorer)
    assert result.samples == len(completions) == len(seen) == 8
    assert result.metrics["eval_objective/scores"] == 3.5
    assert {(c.prompt_id, c.sample_index, c.seed) for c in completions} == {
        (i, k, sample_seed(5, "evaluate", i, k)) for i in range(4) for k in range(2)
    }

    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    reference = AutoModelForCausalLM.from_pretrained(base)
    total, count = 0.0, 0
    for item in seen:
        ids = torch.tensor([[*item.prompt, *item.sample.tokens]])
        n = len(item.sample.tokens)
        with torch.no_grad():
            mine, theirs = (torch.log_softmax(m(ids).logits[0] / 0.8, -1) for m in (policy, reference))
        at = torch.arange(n) + len(item.prompt) - 1
        total += float((mine - theirs)[at, torch.tensor(item.sample.tokens)].sum())
        count += n
    assert abs(total) > 0.1
    assert result.metrics["eval_objective/kl"] == pytest.approx(total / 8, rel=1e-4)
    assert result.metrics["eval_objective/kl_per_token"] == pytest.approx(total / count, rel=1e-4)
    assert {m.slice for m in reporter.recorded} == {"", "domain=a", "domain=b"}

    # The reward model has the policy as its base, and the policy is its own reference.
    same = evaluate.train(
        spec.model_copy(update={"reference": spec.policy}), store, ConsoleReporter(stream=None), tmp_path
    )
    assert same.metrics["eval_objective/kl"] == 0
    assert same.metrics["eval_objective/scores_std"] > 0
    assert len((tmp_path / "completions.jsonl").read_text().splitlines()) == 8


@pytest.mark.parametrize(("asked", "used"), [("auto", "float32"), ("bfloat16", "bfloat16")])
def test_all_models_of_an_evaluation_run_in_the_precision_that_its_result_names(
    tiny_ref: ModelRef,
    other_tiny_model: Path,
    reward_folder: Path,
    store: ArtifactStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: str,
    used: str,
) -> None:
    """Also on a CPU that is faster in bf16: samples must not depend on the rest of the batch."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    monkeypatch.setattr(precision, "measure", lambda device, hidden_size: precision.Rates(1e9, 9e9))
    monkeypatch.setattr(precision, "SMALLEST_HIDDEN_SIZE", 0)
    dtypes: list[torch.dtype] = []
    load_policy, load_reward = evaluate.load_causal_lm, evaluation.load_reward_model

    def causal(ref: ModelRef, **how: Any) -> Any:
        model = load_policy(ref, **how)
        dtypes.append(next(model.parameters()).dtype)
        return model

    def classifier(*arguments: Any) -> Any:
        model, tokenizer = load_reward(*arguments)
        dtypes.append(next(model.parameters()).dtype)
        return model, tokenizer

    monkeypatch.setattr(evaluate, "load_causal_lm", causal)
    monkeypatch.setattr(evaluation, "load_reward_model", classifier)
    prompts = write_rows(tmp_path / "prompts.jsonl", [PromptRow(id=1, messages=user("Hm"))])
    spec = EvaluateSpec(
        policy=tiny_ref,
        reference=ModelRef(base=str(other_tiny_model)),
        reward_models=(str(reward_folder),),
        prompts=str(prompts),
        generation=Generation(samples_per_prompt=2, max_new_tokens=4, precision=asked),
        max_length=128,
    )
    result = evaluate.evaluate(spec, store, ConsoleReporter(stream=None), lambda batch: None)
    assert result.precision == used
    assert dtypes == [getattr(torch, used)] * 3


def test_a_reference_that_reads_other_tokens_is_refused_before_anything_is_sampled(
    tiny_model: Path, tiny_ref: ModelRef, reward_folder: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    """It has the same number of tokens, but two are exchanged. All log-probs would be numbers without a meaning."""
    other = shutil.copytree(tiny_model, tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    prompts = write_rows(tmp_path / "prompts.jsonl", [PromptRow(id=1, messages=user("Hm"))])
    spec = EvaluateSpec(
        policy=tiny_ref,
        reference=ModelRef(base=str(other)),
        reward_models=(str(reward_folder),),
        prompts=str(prompts),
        max_length=128,
    )
    completions: list[Completion] = []
    with pytest.raises(ModelUnavailable, match="do not share a vocabulary"):
        evaluate.evaluate(spec, store, ConsoleReporter(stream=None), completions.extend)
    assert not completions


def test_a_score_that_is_no_number_is_named_and_not_averaged(
    tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path
) -> None:
    prompts = write_rows(tmp_path / "prompts.jsonl", [PromptRow(id=i, messages=user("Hm")) for i in (1, 7)])
    spec = EvaluateSpec(
        policy=tiny_ref,
        reference=tiny_ref,
        reward_models=("scripted",),
        prompts=str(prompts),
        generation=Generation(samples_per_prompt=4, max_new_tokens=4),
    )

    def scorer(responses: Sequence[Response]) -> torch.Tensor:
        return torch.tensor([math.inf if response.row.id == 7 else 1.0 for response in responses])

    with pytest.raises(TrainingDiverged, match=r"4 of 8 responses got a score that is not a number.* prompt 7\."):
        evaluate.evaluate(spec, store, ConsoleReporter(stream=None), lambda completions: None, scorer)


def test_no_more_is_read_than_the_reward_model_can(reward_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """This holds for any `max_length` of the evaluation: the model would also score positions that it never learned."""
    long, ending = response("No. " * 40 + "Yes." * 40, 3), response("Yes." * 40, 3)
    config = json.loads((reward_folder / "config.json").read_text()) | {"max_position_embeddings": 64}
    (reward_folder / "config.json").write_text(json.dumps(config))
    scores = reward_models_scorer([reward_folder], max_length=512)([long, ending])
    assert scores[0].item() == pytest.approx(scores[1].item(), abs=1e-6)
    assert "2 of 2 responses are longer than the reward model's 64 tokens" in caplog.text


@pytest.mark.parametrize("short", ["max_length", "reference"])
def test_prompts_that_are_not_read_whole_are_named(
    short: str, tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path
) -> None:
    build_short_model(tmp_path / "short", positions=32)
    rows = [PromptRow(id=i, messages=user("z" * n)) for i, n in ((3, 9), (4, 10))]  # 19 tokens more, 4 new ones
    spec = EvaluateSpec(
        policy=tiny_ref,
        reference=tiny_ref if short == "max_length" else ModelRef(base=str(tmp_path / "short")),
        reward_models=("scripted",),
        prompts=str(write_rows(tmp_path / "prompts.jsonl", rows)),
        generation=Generation(samples_per_prompt=1, max_new_tokens=4),
        max_length=32 if short == "max_length" else 1024,
    )

    def evaluated(spec: EvaluateSpec) -> evaluate.EvaluateResult:
        score = lambda responses: torch.zeros(len(responses))  # noqa: E731
        return evaluate.evaluate(spec, store, ConsoleReporter(stream=None), lambda completions: None, score)

    assert evaluated(spec).notes == ("1 prompts lost a part, to stay within 32 tokens with 4 new ones: 4",)
    # What cannot be sampled is told before the reward models, of which there are none, are looked for.
    crowded = spec.model_copy(update={"generation": Generation(max_new_tokens=32)})
    with pytest.raises(InvalidInput, match="no room for a prompt"):
        evaluate.evaluate(crowded, store, ConsoleReporter(stream=None), lambda completions: None)


def test_stored_responses_of_the_reference_are_the_yardstick(
    tiny_ref: ModelRef, store: ArtifactStore, tmp_path: Path
) -> None:
    """Scores are lengths: best-of-2 of "a" and "abc" is 3. The third prompt has only one stored response."""
    prompts = write_rows(tmp_path / "prompts.jsonl", [PromptRow(id=i, messages=user("Hm")) for i in (1, 2, 3)])
    stored = {1: ("a", "abc"), 2: ("ab", "ab"), 3: ("abcdefgh",)}
    answers = write_rows(tmp_path / "answers.jsonl", [AnswersRow(prompt_id=i, texts=t) for i, t in stored.items()])
    spec = EvaluateSpec(
        policy=tiny_ref,
        reference=tiny_ref,
        reward_models=("none",),
        prompts=str(prompts),
        base_samples=str(answers),
        generation=Generation(samples_per_prompt=2, max_new_tokens=4),
        max_length=128,
    )
    said: list[Completion] = []

    def by_length(responses: Sequence[Any]) -> torch.Tensor:
        return torch.tensor([float(len(each.text)) for each in responses])

    metrics = evaluate.evaluate(spec, store, ConsoleReporter(stream=None), said.extend, by_length).metrics
    new = [sum(len(c.text) for c in said if c.prompt_id == prompt) / 2 for prompt in (1, 2)]
    assert metrics["eval_base/scores"] == pytest.approx((2 + 2) / 2)
    assert metrics["eval_base/best_of_2"] == pytest.approx((3 + 2) / 2)
    assert metrics["eval_base/gain"] == pytest.approx((new[0] - 2 + new[1] - 2) / 2)
    assert (metrics["eval_base/n"], metrics["eval_base/prompts"]) == (2, 2)

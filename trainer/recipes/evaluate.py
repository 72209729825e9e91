"""Evaluate a policy on held-out prompts: sample answers, score them and compare with the reference, by slice.

If the spec names a previous policy (`before`), that policy answers the same prompts with the same seeds, and the same
reward models score both (`trainer.evaluation.comparing`). Both also answer the suites (`trainer.evaluation.suites`).
"""

import gc
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object
from torch import Tensor

from app.artifacts import ArtifactStore
from app.domain import texts, yardstick
from app.errors import InvalidInput
from app.rows import PromptRow, SuiteAnswer
from app.specs import EvaluateSpec, ModelRef
from trainer.batching.chat import ChatEncoder
from trainer.batching.data import read_answers, read_prompts
from trainer.evaluation import premises
from trainer.evaluation.comparing import compare
from trainer.evaluation.figures import (
    Looked,
    Scorer,
    look,
    measure,
    require_numbers,
    response_logps,
    reward_figures,
    reward_models_scorer,
)
from trainer.evaluation.suites import OnSuite, Suites, Taken, to_lines
from trainer.models.loading import (
    load_causal_lm,
    load_tokenizer,
    notes_on,
    read_by_all,
    require_one_vocabulary,
    resolve,
    sampling_dtype,
)
from trainer.models.sizes import sizes_for
from trainer.processes import accelerator
from trainer.recipes.sample import Completion, OnCompletions, write_completions
from trainer.reporting import Reporter
from trainer.sampling.responses import Response, Sampler, cut_prompts
from trainer.speed.memory import PeakMemory
from trainer.speed.precision import name_of


class EvaluateResult(NamedTuple):
    """The metrics of `trainer.evaluation.figures` over all responses. Metrics by slice go to the reporter."""

    metrics: dict[str, float]
    samples: int
    tokens: int
    seconds: float
    precision: str
    """The precision of all models. To repeat the evaluation, put it into the spec in place of `auto`."""
    sizes: dict[str, int]
    """`batch_size` (sequences generated together) and `forward_tokens`: see `RewardResult`."""
    peak_memory: int
    """As in `RewardResult`."""
    notes: tuple[str, ...] = ()
    """Sentences that help to interpret the metrics: prompts that were cut, or a default chat template that was used."""
    suites: tuple[dict[str, Any], ...] = ()
    """Counts by suite version and slice: `trainer.evaluation.suites.Suites.compare`."""
    examples: Mapping[str, Sequence[dict[str, Any]]] = MappingProxyType({})
    """The most conspicuous answers by each figure that cannot be computed from the text alone: the prompt, the answer
    and the figure's value."""


class Share(NamedTuple):
    """The results of one process: for its responses, in their order, and for those of the previous policy."""

    responses: list[Response]
    scores: list[float]
    logps: list[Tensor]
    reference_logps: list[Tensor]
    before: list[Response]
    before_scores: list[float]
    base: list[tuple[int, float]]
    """(prompt id, score) of each stored response of the reference."""
    looked: Looked
    before_looked: Looked


class Stored(NamedTuple):
    """A response that was sampled earlier."""

    row: PromptRow
    text: str


def evaluate(
    spec: EvaluateSpec,
    store: ArtifactStore,
    reporter: Reporter,
    on_completions: OnCompletions,
    scorer: Scorer | None = None,
    on_suite: OnSuite = lambda version, answers: None,
) -> EvaluateResult:
    """Sample from the policy, score the samples and measure the policy.

    The samples of a prompt depend on the spec's seed. If two policies are evaluated with the same seed, they use the
    same random numbers, so the comparison is less noisy.

    Args:
        on_completions: called with the policy's samples, batch by batch.
        scorer: replaces the reward models. Without a scorer and reward models, no metrics of scores are reported.
        on_suite: called with both policies' answers to a suite.

    Raises:
        InvalidInput: the prompts file is invalid or empty, the chat template rejects a prompt, `max_new_tokens` leaves
            no room for a prompt, or the spec names suites but no previous policy.
        NotFound: a suite's file is gone.
        ModelUnavailable: a model does not load, or policy and reference have different vocabularies.
        TrainingDiverged: a score is NaN or infinite, or the policy predicts NaN.
    """
    started, memory = time.monotonic(), PeakMemory()
    # 1. Read the prompts and load the policy and the reward models.
    rows, generation = read_prompts(store.resolve(spec.prompts)), spec.generation
    policy_ref, reference_ref = resolve(store, spec.policy), resolve(store, spec.reference)
    before_ref = resolve(store, spec.before) if spec.before else None
    suites = Suites(spec.suites, store)
    if suites and not before_ref:
        raise InvalidInput(
            "Suites compare a policy with the previous policy, but the spec names no previous policy.",
            "Set `before` to the previous policy.",
        )
    tokenizer = load_tokenizer(policy_ref)
    encoder = ChatEncoder(tokenizer, read_by_all(spec.max_length, reference_ref.base))
    notes = (
        *notes_on(tokenizer),
        *cut_prompts(rows, encoder, generation.max_new_tokens),
        *suites.cut(encoder, generation.max_new_tokens),
    )
    if reference_ref.base != policy_ref.base:
        require_one_vocabulary(policy_ref.base, reference_ref.base)
    dtype = sampling_dtype(generation.precision, policy_ref)
    sizes = sizes_for(policy_ref, dtype)
    batch_size = generation.batch_size or sizes.batch_size
    k = generation.samples_per_prompt
    total = len(rows) * k
    done, suite_tokens, in_all = 0, 0, (total + len(suites)) * (2 if before_ref else 1)

    def tick() -> None:
        reporter.progress(done, in_all, "evaluating")

    tick()
    is_scored = bool(scorer or spec.reward_models)
    if scorer is None and not is_scored:
        scorer = _unscored
    elif scorer is None:
        folders = [store.resolve(location) for location in spec.reward_models]
        scorer = reward_models_scorer(folders, spec.max_length, tick=tick, dtype=dtype)
    policy = load_causal_lm(policy_ref, dtype=dtype)

    # 2. Sample. Every process answers its share of the prompts.
    main = accelerator().is_main_process
    mine = rows[accelerator().process_index :: accelerator().num_processes]

    def sampled(model: Any, encoder: ChatEncoder) -> Iterator[list[Response]]:
        nonlocal done
        sampler = Sampler(model, encoder, generation.max_new_tokens, generation.temperature, spec.seed, spec.kind, tick)
        for batch in sampler.respond([(row, range(k)) for row in mine], batch_size):
            done += len(batch)
            reporter.worked(sum(len(response.sample.tokens) for response in batch))
            yield batch
            tick()

    def took(model: Any, encoder: ChatEncoder) -> list[Taken]:
        nonlocal suite_tokens
        taken, said = suites.taken_by(model, encoder, generation.max_new_tokens, batch_size, count, tick)
        suite_tokens += said
        return taken

    def count(cases: int) -> None:
        nonlocal done
        done += cases

    responses: list[Response] = []
    for batch in sampled(policy, encoder):
        if main:
            on_completions([Completion.of(response, generation) for response in batch])
        responses += batch

    # 3. Compute scores, and log-probs of policy and reference. The two need not be in memory together.
    scores, looked = look(scorer, responses)
    answers = read_answers(store.resolve(spec.base_samples)) if spec.base_samples else {}
    stored = [Stored(row, text) for row in mine for text in answers.get(row.id, ())]
    base_scores = scorer(stored).tolist() if stored else []
    base = [(each.row.id, score) for each, score in zip(stored, base_scores, strict=True)]
    sequences = [response.sequence for response in responses]
    pad_id = tokenizer.pad_token_id
    logps = response_logps(policy, sequences, generation.temperature, pad_id, tick)
    taken = took(policy, encoder) if suites else []
    agrees = premises.policy_margins(policy, encoder, tick) if before_ref else []
    loaded_ref, loaded = policy_ref, policy
    del policy

    def load(ref: ModelRef) -> Any:
        nonlocal loaded_ref, loaded
        if ref != loaded_ref:
            loaded = None
            gc.collect()  # modules form reference cycles; loading the next model needs the memory
            loaded_ref, loaded = ref, load_causal_lm(ref, dtype=dtype)
        return loaded

    reference_logps = logps
    if reference_ref != policy_ref:
        reference_logps = response_logps(load(reference_ref), sequences, generation.temperature, pad_id, tick)

    # 4. The previous policy answers the same prompts with the same seeds; the same reward models score its answers.
    before: list[Response] = []
    taken_before: list[Taken] = []
    agreed: list[float] = []
    if before_ref:
        their_encoder = ChatEncoder(load_tokenizer(before_ref), encoder.max_length)
        before = [response for batch in sampled(load(before_ref), their_encoder) for response in batch]
        taken_before = took(load(before_ref), their_encoder) if suites else []
        agreed = premises.policy_margins(load(before_ref), their_encoder, tick)
    before_scores, before_looked = look(scorer, before) if before else (torch.empty(0), Looked.unknown(torch.empty(0)))
    rewarded = premises.reward_margins(scorer) if before and is_scored else None

    # 5. Gather the processes' shares. The main process's share comes first; its completions are already handed on.
    mine_found = Share(
        *(responses, scores.tolist(), logps, reference_logps, before, before_scores.tolist(), base),
        *(looked, before_looked),
    )
    shares: list[Share] = gather_object([mine_found])
    if main:
        for share in shares[1:]:
            on_completions([Completion.of(response, generation) for response in share.responses])
    responses = [response for share in shares for response in share.responses]
    scores = torch.tensor([score for share in shares for score in share.scores])
    before = [response for share in shares for response in share.before]
    before_scores = torch.tensor([score for share in shares for score in share.before_scores])
    require_numbers(responses, scores)
    require_numbers(before, before_scores)
    logps = [row for share in shares for row in share.logps]
    reference_logps = [row for share in shares for row in share.reference_logps]
    looked = Looked(*map(torch.cat, zip(*(share.looked for share in shares), strict=True)))
    before_looked = Looked(*map(torch.cat, zip(*(share.before_looked for share in shares), strict=True)))

    # 6. Report the metrics, overall and by slice.
    measured = measure(responses, scores, logps, reference_logps, looked)
    if before:
        for name, values in compare(responses, scores, before, before_scores, looked, before_looked).items():
            measured[name] |= values
        measured[""] |= premises.measured(agrees, agreed, rewarded)
    measured[""] |= _yardstick(responses, scores, [each for share in shares for each in share.base])
    if not is_scored:
        measured = {name: _without_scores(values) for name, values in measured.items()}
    for name, values in measured.items():
        reporter.metrics(0, values, name)
    tokens = suite_tokens + sum(len(response.sample.tokens) for response in [*responses, *before])
    results = suites.compare(taken, taken_before, on_suite if main else lambda version, answers: None)
    return EvaluateResult(
        measured[""],
        total,
        tokens,
        time.monotonic() - started,
        name_of(dtype),
        sizes={"batch_size": batch_size, "forward_tokens": sizes.forward_tokens},
        peak_memory=memory.peak(),
        notes=(*notes, *memory.notes),
        suites=tuple(results),
        examples=_worst(responses, looked)
        | ({"premises": premises.worst(agrees, WORST)} if agrees else {})
        | ({"premises_reward": premises.worst(rewarded, WORST)} if rewarded else {}),
    )


WORST = 5  # examples per figure


def _worst(responses: Sequence[Response], looked: Looked) -> dict[str, list[dict[str, Any]]]:
    """Return the responses with the highest values of each reward-model figure, at most one per prompt."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, column in reward_figures(looked).items():
        of_prompts: dict[int, dict[str, Any]] = {}
        for i in column.argsort(descending=True, stable=True).tolist():
            row = responses[i].row
            if column[i] > 0 and row.id not in of_prompts and len(of_prompts) < WORST:
                asked = texts.asked_in(row.messages)
                of_prompts[row.id] = {"asked": asked, "said": responses[i].text, "value": float(column[i])}
        found[name] = list(of_prompts.values())
    return found


def _unscored(responses: Sequence[Any]) -> Tensor:
    """Stand in for missing reward models. `_without_scores` removes the metrics that depend on these scores."""
    return torch.zeros(len(responses))


def _without_scores(values: dict[str, float]) -> dict[str, float]:
    by_scores = ("scores", "best_of_n", "eval_base/", "eval_wins", "length_at_reward", "spread")
    return {name: value for name, value in values.items() if not any(part in name for part in by_scores)}


def _yardstick(responses: list[Response], scores: Tensor, base: list[tuple[int, float]]) -> dict[str, float]:
    """Compare the scores with best-of-n of the reference: see `app.domain.yardstick`."""
    new: defaultdict[int, list[float]] = defaultdict(list)
    of_reference: defaultdict[int, list[float]] = defaultdict(list)
    for response, score in zip(responses, scores.tolist(), strict=True):
        new[response.row.id].append(score)
    for prompt_id, score in base:
        of_reference[prompt_id].append(score)
    return yardstick.measure(of_reference, new)


def train(spec: EvaluateSpec, store: ArtifactStore, reporter: Reporter, folder: Path) -> EvaluateResult:
    """Run `evaluate` with the signature that all recipes share. Write the policy's samples to `completions.jsonl` in
    `folder`, and the answers to suites to `suite-*.jsonl`."""

    def write(version: int, answers: Sequence[SuiteAnswer]) -> None:
        (folder / f"suite-{version}.jsonl").write_text(to_lines(answers), encoding="utf-8")

    return evaluate(spec, store, reporter, write_completions(folder / "completions.jsonl"), on_suite=write)

"""Rough estimates of a round's time and memory: time from token counts and rates, memory from the model's size.

The rate of a stage is that of the newest run of its kind, if there is one. Otherwise the default rates below apply,
which were measured with SmolLM2-135M-Instruct and LoRA on two CPU cores. For other models, they are scaled by model
size.
"""

from collections.abc import Mapping
from typing import NamedTuple

KNOWN_PARAMETERS = 134_515_008  # parameters of the model behind the default rates
TRAINED, SAMPLED, READ = 300.0, 350.0, 900.0  # tokens per second: trained on, sampled, read without gradients
STARTING = 10.0  # seconds to load a run's models
FROZEN = 10_000.0  # comparisons per second to fit and write, on one core
MEASURED_PROMPTS, MEASURED_SAMPLES = 48, 2  # sampled after each phase of methods in turns: see trainer.training.turns

PROGRAM = 700_000_000  # bytes: Python with its libraries
FLOAT = 4  # bytes


class Shape(NamedTuple):
    """The dimensions of a model that determine its memory."""

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int


class Data(NamedTuple):
    """The amount of data and the length of its texts."""

    pairs: int  # comparisons or demonstrations to train on
    train_prompts: int
    evaluation_prompts: int
    queue_prompts: int  # train and held-out prompts whose samples return to the queue
    prompt_tokens: float  # mean per prompt
    response_tokens: float  # mean per response
    suite_cases: int = 0  # cases that both policies answer once


class Plan(NamedTuple):
    """The settings of a round that determine the amount of work."""

    algorithm: str
    epochs: int = 1
    reward_epochs: int = 1
    reward_members: int = 1  # each trained without one fold of the prompts; each one scores
    turns: int = 1
    prompts_per_turn: int = 0
    answers: int = 1  # answers per prompt in training
    pairs: int = 1  # pairs of answers per prompt and turn
    best: int = 1  # best answers per prompt to imitate
    human_epochs: int = 0  # epochs over people's comparisons before the turns
    human_share: float = 0.0  # share of people's comparisons among a turn's rows
    episodes: int = 0
    queue_prompts: int = 0
    queue_samples: float = 0  # samples per prompt on average, over all models


class Work(NamedTuple):
    """The work of a run of one kind, in tokens."""

    kind: str
    trained: float = 0
    sampled: float = 0
    read: float = 0

    @property
    def counted(self) -> float:
        """The number that a run of this kind reports as its tokens."""
        return self.sampled if self.kind in ("sample", "evaluate", "ppo", "rloo", "grpo") else self.trained

    def seconds(self, parameters: int) -> float:
        """Return the estimated seconds with the default rates."""
        spent = self.trained / TRAINED + self.sampled / SAMPLED + self.read / READ
        return STARTING + spent * parameters / KNOWN_PARAMETERS


def works(plan: Plan, data: Data, *, trains_reward: bool = True, evaluates: bool = True) -> list[Work]:
    """Return the work of a round's runs, in their order."""
    pair, answer = data.prompt_tokens + 2 * data.response_tokens, data.response_tokens
    found = []
    if trains_reward:
        passes = plan.reward_epochs * max(1, plan.reward_members - 1)  # no member reads its own fold
        found.append(Work("reward", trained=data.pairs * pair * passes))
    found.append(_policy(plan, data, pair))
    found.append(Work("sample", sampled=min(plan.queue_prompts, data.queue_prompts) * plan.queue_samples * answer))
    if evaluates:
        # Two samples per prompt and policy. The reward models read all of them; log-probs take two passes over the new
        # policy's samples.
        samples = data.evaluation_prompts * 2 * answer
        asked = samples + data.evaluation_prompts * data.prompt_tokens
        answered = 2 * (samples + data.suite_cases * answer)
        found.append(Work("evaluate", sampled=answered, read=asked * (2 * plan.reward_members + 2)))
    return found


def _policy(plan: Plan, data: Data, pair: float) -> Work:
    prompt, answer = data.prompt_tokens, data.response_tokens
    comparisons = data.pairs * pair
    if plan.algorithm == "sft":
        return Work("sft", trained=data.pairs * (prompt + answer) * plan.epochs)
    if plan.algorithm == "dpo":
        return Work("dpo", trained=comparisons * plan.epochs, read=comparisons)
    if plan.algorithm in ("on_policy_dpo", "best_of_n"):
        prompts = min(data.train_prompts, plan.prompts_per_turn)
        sampled = prompts * plan.answers * answer
        read = (sampled + prompts * prompt) * plan.reward_members
        if plan.algorithm == "best_of_n":
            trained = prompts * plan.best * (prompt + answer) * plan.epochs
        else:
            pairs = prompts * plan.pairs
            chosen = (pairs + min(data.pairs, pairs * plan.human_share / (1 - plan.human_share))) * pair
            trained, read = chosen * plan.epochs, read + chosen
        phases = plan.turns + (plan.human_epochs > 0)
        measured = phases * min(data.train_prompts, MEASURED_PROMPTS) * MEASURED_SAMPLES * answer
        return Work(
            plan.algorithm,
            trained=comparisons * plan.human_epochs + plan.turns * trained,
            sampled=plan.turns * sampled + measured,
            read=plan.turns * read + measured * (plan.reward_members + 2) + (comparisons if plan.human_epochs else 0),
        )
    # A prompt is read once for all its answers. Each episode is read for its score and for two log-probs: the policy's
    # and the reference's.
    episodes = plan.episodes * (prompt / plan.answers + answer)
    return Work(
        plan.algorithm,
        trained=episodes * plan.epochs,
        sampled=plan.episodes * answer,
        read=episodes * (plan.reward_members + 2),
    )


class Rate(NamedTuple):
    """The speed of an earlier run of a kind, and its peak memory if it is known."""

    tokens_per_second: float
    source: str
    peak_memory: int | None = None  # bytes


class Part(NamedTuple):
    """The estimate of one run."""

    kind: str
    seconds: float
    source: str


class Freezing(NamedTuple):
    """The speed of freezing an earlier round."""

    rows_per_second: float
    source: str


def freezing(rows: int, rate: Freezing | None) -> Part:
    """Estimate a round's first stage, which does not depend on the model's size.

    Args:
        rows: number of rows to write.
        rate: speed of the newest round that was large enough to measure.
    """
    found = rate or Freezing(FROZEN, "default rate of one CPU core")
    return Part("freeze", rows / found.rows_per_second, found.source)


class Cost(NamedTuple):
    """The estimate of a round."""

    parts: list[Part]
    memory: int | None  # peak in bytes; None if the model's size is unknown
    memory_source: str

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.parts)


def cost(works: list[Work], rates: Mapping[str, Rate], shape: Shape | None, memory: int | None) -> Cost:
    """Estimate the cost of a round with these runs.

    Args:
        rates: rates of earlier runs on the same base model, by kind of run.
        shape: dimensions of the base model; None assumes the size of the default model.
        memory: estimate in bytes, used unless earlier runs of all training kinds have a measured peak.
    """
    parts = []
    for work in works:
        if rate := rates.get(work.kind):
            parts.append(Part(work.kind, work.counted / rate.tokens_per_second, rate.source))
        else:
            seconds = work.seconds(shape.parameters if shape else KNOWN_PARAMETERS)
            parts.append(Part(work.kind, seconds, "default rates of two CPU cores"))
    trains = [rates.get(work.kind) for work in works if work.trained]
    peaks = [rate.peak_memory for rate in trains if rate and rate.peak_memory]
    if peaks and len(peaks) == len(trains):
        return Cost(parts, max(peaks), "as earlier rounds took")
    return Cost(parts, memory, "from the model's size")


def memory_of(shape: Shape, *, models: int, full_weights: bool, tokens: int) -> int:
    """Estimate the bytes that training takes at once: fp32 weights, optimiser state and activations.

    Args:
        models: number of models in memory, including the trained one.
        full_weights: whether all weights are trained. Gradients and AdamW's two moments are then as large as the model;
            for adapters they are small.
        tokens: tokens per forward pass.
    """
    weights = FLOAT * shape.parameters * (models + (3 if full_weights else 0))
    layers = tokens * shape.layers * (16 * shape.hidden + 4 * shape.intermediate) * FLOAT
    logits = tokens // 2 * shape.vocabulary * 3 * FLOAT  # only response tokens have logits: about half of the tokens
    return PROGRAM + weights + layers + logits

"""What a round will take: time part by part, from counts of tokens and rates, and memory from the model's size. Rough.

A part's rate is that of the newest run of its kind, if there was one. Otherwise it is made from the default rates
below, which were seen with SmolLM2-135M-Instruct and LoRA on two CPU cores, and which are as many times slower as a
model is larger.
"""

from collections.abc import Mapping
from typing import NamedTuple

KNOWN_PARAMETERS = 134_515_008  # of the model that the default rates are of
TRAINED, SAMPLED, READ = 300.0, 350.0, 900.0  # tokens a second: trained on, sampled, read without gradients
STARTING = 10.0  # seconds a run takes to load its models
FROZEN = 10_000.0  # comparisons a second that are fitted and written, on one core
MEASURED_PROMPTS, MEASURED_SAMPLES = 48, 2  # sampled after each phase of a method in turns: see trainer.training.turns

PROGRAM = 700_000_000  # bytes: Python with its libraries
FLOAT = 4  # bytes


class Shape(NamedTuple):
    """A model's size, for its memory."""

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int


class Data(NamedTuple):
    """How much there is to learn from, and how long it is."""

    pairs: int  # comparisons or demonstrations to train on
    train_prompts: int
    evaluation_prompts: int
    queue_prompts: int  # train and held-out ones, whose samples return to the queue
    prompt_tokens: float  # of one prompt
    response_tokens: float  # of one response
    suite_cases: int = 0  # that both policies answer once


class Plan(NamedTuple):
    """The settings of a round that decide how much work it is."""

    algorithm: str
    epochs: int = 1
    reward_epochs: int = 1
    reward_members: int = 1  # each trained without one fold of the prompts, and asked in turn
    turns: int = 1
    prompts_per_turn: int = 0
    answers: int = 1  # to a prompt, while training
    pairs: int = 1  # of a prompt's answers, each turn
    best: int = 1  # of a prompt's answers, imitated
    human_epochs: int = 0  # over the comparisons, before the turns
    human_share: float = 0.0  # of a turn's rows that are people's comparisons
    episodes: int = 0
    queue_prompts: int = 0
    queue_samples: float = 0  # to a prompt on average, of all models


class Work(NamedTuple):
    """Tokens of a run of one kind."""

    kind: str
    trained: float = 0
    sampled: float = 0
    read: float = 0

    @property
    def counted(self) -> float:
        """The tokens that a run of this kind counts in its result."""
        return self.sampled if self.kind in ("sample", "evaluate", "ppo", "rloo", "grpo") else self.trained

    def seconds(self, parameters: int) -> float:
        """By the default rates."""
        spent = self.trained / TRAINED + self.sampled / SAMPLED + self.read / READ
        return STARTING + spent * parameters / KNOWN_PARAMETERS


def works(plan: Plan, data: Data, *, trains_reward: bool = True, evaluates: bool = True) -> list[Work]:
    """The runs of a round, in their order."""
    pair, answer = data.prompt_tokens + 2 * data.response_tokens, data.response_tokens
    found = []
    if trains_reward:
        passes = plan.reward_epochs * max(1, plan.reward_members - 1)  # no member reads its own fold
        found.append(Work("reward", trained=data.pairs * pair * passes))
    found.append(_policy(plan, data, pair))
    found.append(Work("sample", sampled=min(plan.queue_prompts, data.queue_prompts) * plan.queue_samples * answer))
    if evaluates:
        # Two policies, two samples a prompt; the reward models and both log-probs of the new policy's read them.
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
    # A prompt is read once for its answers. Scores, old log-probs and those of the reference are read.
    episodes = plan.episodes * (prompt / plan.answers + answer)
    return Work(
        plan.algorithm,
        trained=episodes * plan.epochs,
        sampled=plan.episodes * answer,
        read=episodes * (plan.reward_members + 2),
    )


class Rate(NamedTuple):
    """How fast an earlier run of a kind was, and how much memory it took, where it says so."""

    tokens_per_second: float
    source: str
    peak_memory: int | None = None  # bytes


class Part(NamedTuple):
    """The estimate of one run."""

    kind: str
    seconds: float
    source: str


class Freezing(NamedTuple):
    """How fast an earlier round was frozen."""

    rows_per_second: float
    source: str


def freezing(rows: int, rate: Freezing | None) -> Part:
    """The part of a round's first stage, which no model's size plays a part in.

    Args:
        rows: that it writes.
        rate: of the newest round that was large enough to tell.
    """
    found = rate or Freezing(FROZEN, "default rate of one CPU core")
    return Part("freeze", rows / found.rows_per_second, found.source)


class Cost(NamedTuple):
    """The estimate of a round."""

    parts: list[Part]
    memory: int | None  # bytes, at most at once; none where the model's size is not known
    memory_source: str

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.parts)


def cost(works: list[Work], rates: Mapping[str, Rate], shape: Shape | None, memory: int | None) -> Cost:
    """The estimate of a round of these runs.

    Args:
        rates: by kind of run, those of earlier runs on the same base model.
        shape: of the base model; none is taken for one as large as the default model.
        memory: estimate in bytes, used unless each kind that trains has been measured.
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
    """Bytes that training takes at once: weights in fp32, what learning adds to them, and activations.

    Args:
        models: held in memory, the one that learns among them.
        full_weights: gradients and both of AdamW's moments are as large as the model; of adapters they are small.
        tokens: forwarded at once.
    """
    weights = FLOAT * shape.parameters * (models + (3 if full_weights else 0))
    layers = tokens * shape.layers * (16 * shape.hidden + 4 * shape.intermediate) * FLOAT
    logits = tokens // 2 * shape.vocabulary * 3 * FLOAT  # of the responses: about half of the tokens
    return PROGRAM + weights + layers + logits

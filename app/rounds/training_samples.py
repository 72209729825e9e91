"""A policy's responses during training, to the same prompts at each evaluation, so that changes are visible."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

PROMPTS_PER_PAGE = 10
STEPS_PER_PAGE = 6


class TrainingSample(BaseModel):
    """A line of a run's samples file. Later lines replace earlier ones of the same step and prompt."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    step: int
    prompt_id: int
    messages: tuple[dict[str, str], ...] = Field(min_length=1)
    slices: dict[str, str] = Field(default_factory=dict)
    response: str
    score: float | None = None
    kl: float | None = None
    finished: bool = True


class PromptSamples(NamedTuple):
    """One prompt and its response at each of the shown steps; None if it was not sampled."""

    messages: tuple[dict[str, str], ...]
    slices: dict[str, str]
    answers: list[TrainingSample | None]


class TrainingSamples(NamedTuple):
    """A page of training samples."""

    prompts: list[PromptSamples]
    steps: list[int]  # the shown ones, newest first
    slices: list[str]  # all slices, as kind=value
    n_prompts: int  # in the chosen slice
    n_steps: int


def read_training_samples(path: Path) -> list[TrainingSample]:
    """Return the file's samples. Invalid lines are skipped, because a killed writer leaves half a line."""
    found: dict[tuple[int, int], TrainingSample] = {}
    for sample in _lines(path):
        found[sample.step, sample.prompt_id] = sample
    return list(found.values())


def _lines(path: Path) -> Iterator[TrainingSample]:
    with path.open("rb") as lines:
        for line in lines:
            try:
                yield TrainingSample.model_validate_json(line)
            except ValidationError:
                continue


def side_by_side(
    samples: list[TrainingSample], slice_: str = "", first_prompt: int = 0, first_step: int = 0
) -> TrainingSamples:
    """Return a page of a slice's prompts with their answers at a page of steps, newest first.

    slice_: `kind=value`; empty for all.
    """
    names = {sample.prompt_id: [f"{kind}={value}" for kind, value in sample.slices.items()] for sample in samples}
    wanted = sorted(prompt for prompt, tags in names.items() if not slice_ or slice_ in tags)
    steps = sorted({sample.step for sample in samples}, reverse=True)
    shown = steps[first_step : first_step + STEPS_PER_PAGE]
    at = {(sample.prompt_id, sample.step): sample for sample in samples}
    newest = {sample.prompt_id: sample for sample in sorted(samples, key=lambda sample: sample.step)}
    prompts = [
        PromptSamples(newest[prompt].messages, newest[prompt].slices, [at.get((prompt, step)) for step in shown])
        for prompt in wanted[first_prompt : first_prompt + PROMPTS_PER_PAGE]
    ]
    slices = sorted({name for tags in names.values() for name in tags})
    return TrainingSamples(prompts, shown, slices, len(wanted), len(steps))

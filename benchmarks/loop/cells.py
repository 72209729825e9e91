"""Cells, preferences for tuning and for the final run, and grids of cells."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import Field

from app.errors import InvalidInput
from app.simulation.preference import PREFERENCES
from app.specs import Spec

# The rule: methods and settings are compared only on TUNING. FINAL_ONLY is run after the method is chosen, with the
# chosen defaults, so that its results are free of tuning. `detailed` is included to see the effect on length.
TUNING = ("concise", "direct")
FINAL_ONLY = ("example", "brief_and_warm")

Settings = tuple[tuple[str, Any], ...]


class Labels(Spec):
    """Settings for collecting judgments."""

    overlap: float = Field(1.2, ge=1, le=16, description="judgments per comparison; 2.5: half have two, half three")
    heldout_share: float = Field(0.1, ge=0, lt=1, description="share of comparisons that is on held-out prompts")
    selection: Literal["random", "near_miss", "uncertain", "drts", "delta_ucb"] = Field(
        "random", description="how pairs are chosen from round 2 on, when a reward model has scored the answers"
    )
    samples_per_prompt: int = Field(4, ge=2, le=64, description="minimum; more if the budget needs more pairs")
    labelers: int = Field(4, ge=1)
    position_bias: float = Field(0.05, ge=0, le=1)


class Cell(Spec):
    """One loop.

    Attributes:
        settings: settings of the method, as `part.name` and value; parts are labels, reward and policy.
        judgments: the budget of each round.
        prompts: number of prompts to answer from each held-out set; the first prompts cover all kinds.
    """

    method: str
    settings: Settings = ()
    preference: str = "concise"
    noise: float = Field(0.1, ge=0, le=1)
    judgments: int = Field(400, ge=2)
    rounds: int = Field(1, ge=1)
    seed: int = Field(0, ge=0)
    prompts: int = Field(80, ge=2, le=80)
    max_new_tokens: int = Field(64, ge=1)
    base_samples: int = Field(16, ge=4, le=64, description="the base's answers per held-out prompt, for best-of-n")

    @property
    def name(self) -> str:
        """The method with its settings, as in tables and last lines."""
        return self.method + ("[" + ",".join(f"{k}={v}" for k, v in self.settings) + "]" if self.settings else "")

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


def parse_settings(texts: Iterable[str]) -> list[tuple[str | None, str, Any]]:
    """Parse `[METHOD:]part.name=value` into (method or None for all, name, value). Values are JSON, else text.

    Raises:
        InvalidInput: a text has another form.
    """
    found = []
    for text in texts:
        name, equals, value = text.partition("=")
        method, colon, rest = name.partition(":")
        if not equals or (rest or method).partition(".")[0] not in ("labels", "reward", "policy"):
            raise InvalidInput(
                f"“{text}” is not a setting.",
                "Write part.name=value; parts are labels, reward and policy. METHOD: in front limits it to a method.",
            )
        try:
            parsed = json.loads(value)
        except ValueError:
            parsed = value
        found.append((method if colon else None, rest or method, parsed))
    return found


def grid(
    methods: Sequence[str],
    preferences: Sequence[str],
    noises: Sequence[float],
    budgets: Sequence[int],
    rounds: Sequence[int],
    seeds: Sequence[int],
    settings: Sequence[str] = (),
    *,
    frozen: Sequence[str] = (),
    final: bool = False,
    **common: Any,
) -> list[Cell]:
    """Return all combinations, ordered by seed first, so that all cells of the first seed come first.

    Args:
        frozen: methods that settings do not change.

    Raises:
        InvalidInput: a preference is unknown, or a preference of FINAL_ONLY would be used for tuning.
    """
    if unknown := set(preferences) - PREFERENCES.keys():
        raise InvalidInput(f"Unknown preferences: {', '.join(sorted(unknown))}.", f"Known: {', '.join(PREFERENCES)}.")
    if settings and not final and (kept := set(preferences) & set(FINAL_ONLY)):
        raise InvalidInput(
            f"{', '.join(sorted(kept))} are only for the final run, but --set changes settings.",
            f"Tune on {' and '.join(TUNING)}. For the final run with the chosen settings, add --final.",
        )
    parsed = parse_settings(settings)
    if stray := {method for method, _, _ in parsed if method is not None} - set(methods):
        raise InvalidInput(f"Settings are for methods that do not run: {', '.join(sorted(stray))}.")

    def own(method: str) -> Settings:
        if method in frozen:
            return ()
        # If a setting is given twice, the last one counts.
        return tuple(sorted({name: value for of, name, value in parsed if of in (None, method)}.items()))

    return [
        Cell(
            method=method,
            settings=own(method),
            preference=preference,
            noise=noise,
            judgments=budget,
            rounds=count,
            seed=seed,
            **common,
        )
        for seed, count, budget, noise, preference, method in itertools.product(
            seeds, rounds, budgets, noises, preferences, methods
        )
    ]

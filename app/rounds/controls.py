"""The controls of a new round's form, made from the settings that `app.rounds.forms` declares."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from app.rounds.forms import DERIVED, Algorithm, Group, RoundConfig, Setting, default_rate
from app.specs import LOSS_DEFAULTS, PreferenceLoss


class FormField(NamedTuple):
    """A control of the form."""

    name: str
    label: str
    hint: str
    value: str  # as typed
    options: tuple[tuple[str, str], ...]  # (value, text) of a list; none: a number is typed
    limits: dict[str, float]  # min and max, where the bound itself is allowed
    step: str
    required: bool
    advanced: bool
    error: str


def form_fields(
    algorithm: Algorithm, values: Mapping[str, Any], errors: Mapping[str, str]
) -> dict[Group, list[FormField]]:
    """The form's controls by group, with what was typed and what is wrong with it."""
    groups: dict[Group, list[FormField]] = {"reads": [], "policy": [], "reward": [], "samples": []}
    for name, info in RoundConfig.model_fields.items():
        setting = next((each for each in info.metadata if isinstance(each, Setting)), None)
        if setting is None or algorithm not in setting.algorithms:
            continue
        hint = info.description or ""
        if name in DERIVED:
            hint = "; ".join(filter(None, [hint, _default_of(name, algorithm)]))
        value = values.get(name)
        kind: Any = info.annotation
        words = getattr(kind, "__args__", ())
        options: tuple[tuple[str, str], ...] = ()
        if kind is bool:
            options = (("true", "on"), ("false", "off"))
        elif all(isinstance(word, str) for word in words):
            options = tuple((word, word.replace("_", " ")) for word in words)
        bounds = {"ge": "min", "gt": "min", "le": "max", "lt": "max"}
        groups[setting.group].append(
            FormField(
                name=name,
                label=setting.label,
                hint=hint,
                value="" if value is None else str(value).lower() if isinstance(value, bool) else str(value),
                options=options,
                limits={
                    bounds[key]: getattr(each, key) for each in info.metadata for key in bounds if hasattr(each, key)
                },
                step="1" if kind is int or int in words else "any",
                required=type(None) not in words and name not in DERIVED,
                advanced=setting.advanced,
                error=errors.get(name, ""),
            )
        )
    return groups


def _default_of(name: str, algorithm: Algorithm) -> str:
    """What a setting is that is left empty, in words: `empty: 0.1, with simpo 2`."""

    def default(loss: PreferenceLoss) -> str:
        if name == "beta":
            return f"{LOSS_DEFAULTS[loss].beta:g}"
        rates = (f"{default_rate(name, algorithm, lora, loss):.8f}".rstrip("0") for lora in (True, False))
        return "{} with LoRA, {} for full weights".format(*rates)

    usual = default("dpo")
    others = [f", with {loss} {default(loss)}" for loss in LOSS_DEFAULTS if default(loss) != usual]
    return f"empty: {usual}" + "".join(others)

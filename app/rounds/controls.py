"""The controls of a new round's form, made from the settings that `app.rounds.forms` declares."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from app.domain.strengths import STRENGTHS
from app.rounds.forms import BUDGETS, CONFIGS, Algorithm, Group, default, settings_of
from app.specs import LOSS_DEFAULTS


class FormField(NamedTuple):
    """A control of the form."""

    name: str
    label: str
    hint: str
    value: str  # as typed
    options: tuple[tuple[str, str], ...]  # (value, text) of a list; empty for a number field
    limits: dict[str, float]  # min and max, if the setting has bounds
    step: str
    required: bool
    rare: bool
    error: str


def form_fields(
    algorithm: Algorithm, values: Mapping[str, Any], errors: Mapping[str, str]
) -> dict[Group, list[FormField]]:
    """Return the form's controls by group, with what was typed and what is wrong with it, without the strength."""
    groups: dict[Group, list[FormField]] = {"reads": [], "policy": [], "reward": [], "samples": []}
    for name, info, setting in settings_of(algorithm):
        if name == "strength":
            continue
        hint = info.description or ""
        if setting.dependent:
            hint = "; ".join(filter(None, [hint, f"empty: {_default_of(name, algorithm)}"]))
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
                required=type(None) not in words and not setting.dependent,
                rare=setting.rare,
                error=errors.get(name, ""),
            )
        )
    return groups


def _default_of(name: str, algorithm: Algorithm) -> str:
    """Describe the value of a setting that is left empty: `0.1, with simpo 2`."""
    cls = CONFIGS[algorithm]
    if name in BUDGETS:
        return ", ".join(f"{getattr(force, name):g} {force.label.lower()}" for force in STRENGTHS.values())

    def said(loss: str | None) -> str:
        if not name.endswith("learning_rate"):
            return f"{default(cls, name, {'loss': loss}):g}"
        of = "reward_lora" if name.startswith("reward_") else "lora"
        rates = (default(cls, name, {"loss": loss, of: lora}) for lora in (True, False))
        return "{} with LoRA, {} for full weights".format(*(f"{rate:.8f}".rstrip("0") for rate in rates))

    usual = said(None)
    losses = LOSS_DEFAULTS if "loss" in cls.model_fields else ()
    return usual + "".join(f", with {loss} {said(loss)}" for loss in losses if said(loss) != usual)

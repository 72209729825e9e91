"""The methods to compare, and the specs of their rounds."""

from collections.abc import Mapping
from typing import Any, NamedTuple, get_args

from pydantic import ValidationError

from app.errors import InvalidInput
from app.specs import ModelRef, RewardSpec, RunSpec, Spec
from benchmarks.loop.cells import Cell, Labels, Settings

SPECS: dict[str, type[Spec]] = {spec.model_fields["kind"].default: spec for spec in get_args(get_args(RunSpec)[0])}


class Method(NamedTuple):
    """A kind of policy run with its settings; other fields have the specs' defaults."""

    kind: str
    policy: Mapping[str, Any] = {}
    reward: Mapping[str, Any] = {}
    labels: Mapping[str, Any] = {}
    frozen: bool = False  # settings do not change it
    adopts_always: bool = False  # adopt a policy even if the round's reward model finds it worse than the previous one


# Prefloop's rounds before they used the reward model: the fixed baseline, independent of current defaults. At that
# time, the queue gave 150 comparisons for 378 judgments, 54 of them held out.
DPO_TODAY = Method(
    kind="dpo",
    policy={
        "loss": "dpo",
        "beta": 0.1,
        "label_smoothing": 0.0,
        "soft_labels": False,
        "nll_weight": 0.0,
        "lora": {"rank": 16, "alpha": 32},
        "optimiser": {"learning_rate": 1e-4, "epochs": 1, "batch_size": 8, "warmup_ratio": 0.1, "weight_decay": 0.0},
    },
    reward={
        "trunk": "trained",
        "lora": {"rank": 16, "alpha": 32},
        "optimiser": {"learning_rate": 3e-4, "epochs": 2, "batch_size": 8, "warmup_ratio": 0.1, "weight_decay": 0.0},
        "centering": 0.01,
        "soft_labels": True,
        "ensemble": 1,
        "folds": 0,
    },
    labels={"overlap": 2.5, "heldout_share": 0.36},
    frozen=True,
    adopts_always=True,
)

METHODS: dict[str, Method] = {
    "dpo_today": DPO_TODAY,
    "dpo": Method("dpo", {"optimiser": {"learning_rate": 6e-4, "epochs": 2}}),
    "on_policy_dpo": Method("on_policy_dpo"),
    "best_of_n": Method("best_of_n"),
    "rloo": Method("rloo"),
    "grpo": Method("grpo"),
    "ppo": Method("ppo"),
}


def method_of(cell: Cell) -> Method:
    """Return the cell's method. Raises InvalidInput if there is no such method."""
    try:
        return METHODS[cell.method]
    except KeyError:
        known = ", ".join(METHODS)
        raise InvalidInput(f"There is no method {cell.method}.", f"Choose among {known}.") from None


def labels_of(cell: Cell) -> Labels:
    """Return the settings for collecting the cell's judgments."""
    fields = nested(part_of(cell.settings, "labels"))
    return build(Labels, dict(method_of(cell).labels), fields)


def reward_spec(cell: Cell, backbone: ModelRef, snapshot: str, seed: int) -> RewardSpec:
    """Return the spec of a round's reward model."""
    given = {"backbone": backbone, "snapshot": snapshot, "seed": seed}
    own = dict(method_of(cell).reward)
    if "folds" not in RewardSpec.model_fields:
        own.pop("folds", None)
    spec = build(RewardSpec, own, nested(part_of(cell.settings, "reward")), given)
    assert isinstance(spec, RewardSpec)
    return spec


def policy_spec(
    cell: Cell, policy: ModelRef, reference: ModelRef, snapshot: str, reward_model: str, prompts: str, seed: int
) -> Spec:
    """Return the spec of a round's policy run, with those arguments that its kind has as fields."""
    method = method_of(cell)
    given = {
        "policy": policy,
        "reference": reference,
        "snapshot": snapshot,
        "reward_models": (reward_model,),
        "prompts": prompts,
        "max_new_tokens": cell.max_new_tokens,
        "seed": seed,
    }
    spec = SPECS[method.kind]
    read = {name: value for name, value in given.items() if name in spec.model_fields}
    return build(spec, dict(method.policy), nested(part_of(cell.settings, "policy")), read)


def part_of(settings: Settings, part: str) -> dict[str, Any]:
    """Return the settings of one part, without the part's name as a prefix."""
    return {name.partition(".")[2]: value for name, value in settings if name.partition(".")[0] == part}


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Turn `{"optimiser.epochs": 2}` into `{"optimiser": {"epochs": 2}}`."""
    found: dict[str, Any] = {}
    for name, value in flat.items():
        *path, last = name.split(".")
        place = found
        for step in path:
            place = place.setdefault(step, {})
        place[last] = value
    return found


def build(spec: type[Spec], *layers: Mapping[str, Any]) -> Any:
    """Build a spec from its defaults and layers of fields; later layers override earlier ones, also in nested fields.

    Raises:
        InvalidInput: the spec does not have a field, or a value is invalid.
    """
    whole: dict[str, Any] = {}
    parts: dict[str, dict[str, Any]] = {}
    for layer in layers:
        for name, value in layer.items():
            if isinstance(value, Mapping):
                parts[name] = parts.get(name, {}) | value
            else:
                whole[name] = value
                parts.pop(name, None)
    try:
        # A default may depend on other fields, so read defaults from a spec with these fields.
        defaults = spec.model_validate(whole)
        merged = {
            name: before.model_dump() | part if isinstance(before := getattr(defaults, name, None), Spec) else part
            for name, part in parts.items()
        }
        return spec.model_validate(whole | merged)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidInput(f"{spec.__name__}: {where}: {first['msg']}.", "Correct --set.") from error

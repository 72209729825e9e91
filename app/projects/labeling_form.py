"""The form of a project's labeling settings: a control for every field of `LabelingSettings`, in plain words."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from app.documents import LabelingSettings

SPARE_RULES = 2  # empty rows offered below the overlap rules that there are
MOST_RULES = 50
RULE_NAMES = ("domain", "difficulty", "safety_category", "purpose")


class Control(NamedTuple):
    """A control: what is typed into the field of the document at `path`. For a percent, the document stores a share."""

    path: str
    label: str
    hint: str = ""
    kind: Literal["count", "number", "percent", "flag", "choice"] = "number"
    options: tuple[tuple[str, str], ...] = ()


class Group(NamedTuple):
    name: str
    title: str
    text: str
    controls: tuple[Control, ...]


GROUPS = (
    Group(
        "once",
        "Judged by one person",
        "The same number of judgments teaches the policy more if most of them are on different comparisons. All other "
        "comparisons, including those on held-out prompts, get the project's overlap and show how much people agree.",
        (Control("judged_once", "Comparisons on train prompts, %", "At 0, all get the overlap.", kind="percent"),),
    ),
    Group(
        "adaptive",
        "Adaptive overlap",
        "Instead of a fixed overlap, stop asking once the answers are clear and keep asking while they are split. An "
        "overlap rule takes precedence.",
        (
            Control("adaptive.on", "Adapt the overlap to the answers", kind="flag"),
            Control("adaptive.at_least", "Judgments at first", kind="count"),
            Control("adaptive.at_most", "Judgments at most", kind="count"),
            Control(
                "adaptive.sure",
                "Confidence to stop, %",
                "Stop asking when one outcome has this probability; 50 to 100. Higher asks more people.",
                kind="percent",
            ),
        ),
    ),
    Group(
        "calibration",
        "Calibration",
        "Comparisons with known answers, mixed into everybody's tasks unmarked. Each person gets each item once.",
        (
            Control("calibration.rate", "Share of tasks, %", "At 0 there are none.", kind="percent"),
            Control("calibration.threshold", "Minimum accuracy, %", "Labelers below it are paused.", kind="percent"),
            Control("calibration.window", "Recent answers counted", kind="count"),
            Control("calibration.least", "Answers before a labeler can be paused", kind="count"),
        ),
    ),
    Group(
        "repeats",
        "Hidden repeats",
        "A labeler's own comparisons come again with swapped sides, to measure how consistent the labeler is.",
        (
            Control("repeats.rate", "Share of tasks, %", "At 0 there are none.", kind="percent"),
            Control("repeats.gap", "Minimum number of other judgments in between", kind="count"),
        ),
    ),
    Group(
        "quiz",
        "Quiz",
        "If the rubric has a quiz, labelers take it before their first task under that version.",
        (Control("quiz_pass", "Right answers to pass, %", kind="percent"),),
    ),
    Group(
        "pairs",
        "Which pairs are asked",
        "How the pairs of newly sampled responses are chosen. The numbers are relative weights. If a method cannot "
        "choose, for example because there is no reward model yet, a random pair takes its place.",
        (
            Control("pairs.random", "At random"),
            Control("pairs.near_miss", "Near misses", "The responses closest in reward."),
            Control("pairs.uncertain", "Uncertain", "Pairs on which the heads of the reward model disagree most."),
            Control(
                "pairs.new_against_old",
                "New against old",
                "The new policy's response against the one before, on train prompts.",
            ),
            Control(
                "ranking_size",
                "Responses in a task",
                "2 compares a pair; from 3 to 9 labelers rank them.",
                kind="count",
            ),
        ),
    ),
    Group(
        "difficulties",
        "Which prompts are sampled",
        "The mix of difficulties if there are more prompts than a round samples. The numbers are relative weights.",
        (
            Control("difficulties.easy", "Easy"),
            Control("difficulties.hard", "Hard"),
            Control("difficulties.adversarial", "Adversarial"),
        ),
    ),
    Group(
        "consensus",
        "Consensus",
        "How the judgments of a comparison become one result. A change applies to all comparisons at once. If labelers "
        "have given few judgments, the last two methods decide almost as the majority does.",
        (
            Control(
                "consensus",
                "Method",
                kind="choice",
                options=(
                    ("majority", "Majority: every judgment counts the same"),
                    ("strength_weighted", "Strength-weighted: a strong preference counts more"),
                    ("dawid_skene", "Dawid-Skene: reliable labelers count more"),
                    (
                        "crowd_bt",
                        "Crowd-BT: as Dawid-Skene, and other comparisons of the responses count up to half a vote",
                    ),
                ),
            ),
        ),
    ),
    Group(
        "thumbs",
        "Thumbs",
        "One response at a time, good or bad, on a page of its own. The loss KTO learns from thumbs too.",
        (Control("thumbs", "Ask labelers for thumbs", kind="flag"),),
    ),
    Group(
        "own_figures",
        "Figures labelers see about themselves",
        "Shown on their own page, beside the number of judgments. Agreement and accuracy count up to yesterday.",
        (
            Control("own_figures.agreement", "Agreement with others", kind="flag"),
            Control("own_figures.calibration", "Accuracy on calibration items", kind="flag"),
            Control("own_figures.seconds", "Seconds a judgment", kind="flag"),
        ),
    ),
)
CONTROLS = {control.path: control for group in GROUPS for control in group.controls}
NOTHING = dict.fromkeys(CONTROLS, "")  # as typed: a box without its mark is not sent


def values(settings: LabelingSettings) -> dict[str, str]:
    """The document as the form shows it, by path. Where overlap does not adapt, what it would begin with."""
    document = settings.model_dump()
    document["adaptive"] = {"on": settings.adaptive is not None} | (
        document["adaptive"] or {"at_least": 1, "at_most": 5, "sure": 0.9}
    )
    found = {}
    for path, control in CONTROLS.items():
        value: Any = document
        for key in path.split("."):
            value = value[key]
        found[path] = _shown(100 * value if control.kind == "percent" else value)
    for i, rule in enumerate(settings.overlap):
        name, _, of = rule.where.partition("=")
        found |= {f"overlap.{i}.name": name, f"overlap.{i}.value": of, f"overlap.{i}.overlap": str(rule.overlap)}
    return found


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def rows(shown: Mapping[str, str]) -> int:
    """How many overlap rules the form shows: those that are filled in, and some to fill."""
    filled = [i for i in range(MOST_RULES) if any(shown.get(f"overlap.{i}.{part}") for part in ("value", "overlap"))]
    return min(MOST_RULES, (filled[-1] + 1 if filled else 0) + SPARE_RULES)


def read(typed: Mapping[str, str]) -> LabelingSettings:
    """The document that the form says.

    Raises:
        ValidationError: something cannot be; see `problems`.
    """
    document: dict[str, Any] = {"overlap": []}
    for path, control in CONTROLS.items():
        *parents, name = path.split(".")
        place = document
        for parent in parents:
            place = place.setdefault(parent, {})
        said = typed.get(path, "").strip()
        place[name] = said == "true" if control.kind == "flag" else _share(said) if control.kind == "percent" else said
    if not document["adaptive"].pop("on"):
        document["adaptive"] = None
    for i in range(MOST_RULES):
        name, value, overlap = (typed.get(f"overlap.{i}.{part}", "").strip() for part in ("name", "value", "overlap"))
        if value or overlap:
            document["overlap"].append({"where": f"{name}={value}", "overlap": overlap})
    return LabelingSettings.model_validate(document)


def _share(percent: str) -> float | str:
    """`12.5` -> 0.125. What is no number stays as it was typed, and is refused."""
    try:
        return float(percent) / 100
    except ValueError:
        return percent


def problems(error: ValidationError) -> dict[str, str]:
    """What is wrong, by the label that the control has on the page."""
    return {_label(each): _in_words(each) for each in error.errors()}


def _label(error: ErrorDetails) -> str:
    path = ".".join(str(part) for part in error["loc"])
    if error["loc"] and error["loc"][0] == "overlap":
        return f"Overlap rule {int(error['loc'][1]) + 1}" if len(error["loc"]) > 1 else "Overlap rules"
    if path in CONTROLS:
        group = next(group for group in GROUPS if CONTROLS[path] in group.controls)
        return f"{group.title}, “{CONTROLS[path].label}”"
    return next((group.title for group in GROUPS if group.name == path), path)


_WORDS = {
    "greater_than_equal": "must be at least {ge:g}",
    "greater_than": "must be more than {gt:g}",
    "less_than_equal": "must be at most {le:g}",
    "less_than": "must be less than {lt:g}",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "finite_number": "must be a number",
    "literal_error": "is not one of the choices",
    "string_pattern_mismatch": "needs a slice or purpose to apply to",
}


def _in_words(error: ErrorDetails) -> str:
    if error["type"] in _WORDS:
        limits = error.get("ctx", {})
        control = CONTROLS.get(".".join(str(part) for part in error["loc"]))
        if control and control.kind == "percent":
            limits = {name: 100 * limit for name, limit in limits.items() if isinstance(limit, float)} or limits
        return _WORDS[error["type"]].format(**limits)
    return error["msg"].removeprefix("Value error, ")

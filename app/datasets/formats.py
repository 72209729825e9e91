"""The formats of import files: which fields a line has, and what it becomes. Documented in docs/import.md.

Unknown fields are left out of the import and named in its report. Data sets have extra columns, and refusing them would
force people to edit files that are fine. If the format was only guessed, a line is refused when its other fields show
that it is something else.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from app.datasets.fields import Line, is_missing
from app.datasets.lines import (
    DemonstrationLine,
    InstructionLine,
    JudgmentLine,
    PairLine,
    PromptLine,
    RatedLine,
    UnpairedLine,
    is_thumb,
)
from app.datasets.public_lines import (
    ArgumentLine,
    HelpSteerPairLine,
    NectarLine,
    PandaLine,
    RankingLine,
    ShareGPTLine,
    TranscriptLine,
    UltraFeedbackLine,
)
from app.datasets.records import Record

Values = Mapping[str, object]
Read = tuple[list[Record], list[str]]  # the records, and notes on what may surprise people


@dataclass(frozen=True)
class Format:
    """line: the model of its fields. keys: alternative sets of keys by which a line is recognized; all keys of one set
    must be present. about: description for people. fits: a further condition for recognizing a line. unlike: fields
    that show a wrong guess, each with what the line is then.
    """

    line: type[Line]
    keys: tuple[frozenset[str], ...]
    about: str
    fits: Callable[[Values], bool] = lambda _: True
    unlike: Mapping[str, str] = field(default_factory=dict)


def _keys(*alternatives: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(keys.split()) for keys in alternatives)


def _has_thumb(values: Values) -> bool:
    return is_thumb(values["label"])


def _is_list_of(name: str, *keys: str) -> Callable[[Values], bool]:
    def fits(values: Values) -> bool:
        items = values[name]
        return isinstance(items, list) and bool(items) and isinstance(items[0], dict) and items[0].keys() >= {*keys}

    return fits


def _is_ranked(values: Values) -> bool:
    items = next(values[name] for name in _LISTS if name in values)
    first = items[0] if isinstance(items, list) and items else None
    inside = isinstance(first, dict) and bool(first.keys() & {"rank", "score", "rating"})
    return inside or isinstance(values.get("ranks"), list) or isinstance(values.get("scores"), list)


_RATED = (
    "it is a rated response, not an answer to imitate; choose the format rated. To imitate all answers, choose the "
    "format demonstrations"
)
_ANSWERED = "the line has more than a prompt; choose the format prompts to import only the prompts"
_RATINGS = dict.fromkeys(("score", "rating", "reward", "helpfulness", "overall_score"), _RATED)
_LABELED = (
    "it may mark answers that nobody should imitate. If the labels are true or false, choose the format unpaired. To "
    "imitate all answers, choose the format demonstrations"
)
_ANSWERS = dict.fromkeys(
    "chosen rejected response responses response_a response_b completion completions answer answers output label "
    "labels score rating".split(),
    _ANSWERED,
)

_LISTS = ("answers", "responses", "completions")

# Most specific keys first: a file has the first format whose keys are in its first line.
FORMATS: Mapping[str, Format] = {
    "pandalm": Format(
        PandaLine, _keys("instruction response_a response_b"), "instruction, input, response_a, response_b, choices"
    ),
    "arguments": Format(
        ArgumentLine,
        _keys("stance prompt response_a response_b"),
        "UKPConvArg: pair_id, topic, prompt, stance, response_a/b",
    ),
    "pairs": Format(
        PairLine,
        _keys("prompt response_a response_b", "messages response_a response_b"),
        "prompt, response_a, response_b; perhaps pair_id, choice or preference, labeler, choices",
    ),
    "preferences": Format(
        TranscriptLine,
        _keys("chosen rejected"),
        "HH-RLHF, TRL: chosen, rejected; perhaps a prompt",
    ),
    "helpsteer-pairs": Format(
        HelpSteerPairLine,
        _keys("context response1 response2 overall_preference", "prompt response_1 response_2 preference_strength"),
        "HelpSteer3: context, response1, response2, overall_preference",
    ),
    "ultrafeedback": Format(
        UltraFeedbackLine,
        _keys("instruction completions"),
        "UltraFeedback: instruction, completions with annotations",
        _is_list_of("completions", "response", "annotations"),
    ),
    "nectar": Format(
        NectarLine,
        _keys("prompt answers"),
        "Nectar: prompt, answers with answer, model and rank",
        _is_list_of("answers", "answer", "rank", "model"),
    ),
    "rankings": Format(
        RankingLine,
        _keys(*(" ".join(keys) for keys in itertools.product(("prompt", "messages"), _LISTS))),
        "prompt, responses (a list), ranks or scores (a list, or in each response)",
        _is_ranked,
    ),
    "judgments": Format(
        JudgmentLine, _keys("pair_id labeler", "pair_id judge"), "pair_id, labeler or judge, choice or preference"
    ),
    "unpaired": Format(
        UnpairedLine,
        _keys("prompt completion label", "prompt response label", "messages label"),
        "TRL: prompt, completion, label (true: liked); perhaps labeler",
        _has_thumb,
    ),
    "rated": Format(
        RatedLine,
        _keys("prompt response helpfulness"),
        "HelpSteer: prompt, response, helpfulness (or score, rating)",
    ),
    "demonstrations": Format(
        DemonstrationLine,
        _keys("prompt response", "prompt completion", "messages response", "messages completion"),
        "prompt and response (or completion), or messages that end with the answer",
        unlike=_RATINGS | {"label": _LABELED},
    ),
    "sharegpt": Format(ShareGPTLine, _keys("conversations"), "ShareGPT: conversations of from and value"),
    "instructions": Format(
        InstructionLine,
        _keys("instruction output"),
        "Alpaca: instruction, input, output",
        unlike=_RATINGS | {"label": _LABELED},
    ),
    "prompts": Format(
        PromptLine, _keys("prompt", "messages"), "prompt (a string or messages), split and tags", unlike=_ANSWERS
    ),
}


def detect(line: Values) -> str | None:
    """Return the format whose keys this line has, or None."""
    present = {name for name, value in line.items() if not is_missing(value)}
    fitting = (name for name, f in FORMATS.items() if any(keys <= present for keys in f.keys) and f.fits(line))
    found = next(fitting, None)
    messages = line.get("messages")
    if found == "prompts" and isinstance(messages, list) and messages and isinstance(messages[-1], dict):
        # A conversation that ends with its answer is not a prompt.
        return "demonstrations" if messages[-1].get("role") == "assistant" else found
    return found


def parser(name: str, source: str, *, guessed: bool) -> Callable[[Values], Read]:
    """Return a function from a line's object to its records. It raises ValueError (pydantic's included)
    for a bad line."""
    format_ = FORMATS[name]

    def parse(values: Values) -> Read:
        if guessed:
            for key in sorted(values.keys() & format_.unlike.keys()):
                if not is_missing(values[key]):
                    raise ValueError(f"looks like the format {name}, but has the field {key}: {format_.unlike[key]}")
        told: list[str] = []
        return format_.line.model_validate(values).records(source, told), told

    return parse

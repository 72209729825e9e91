"""What a line of each format becomes, with rows like those of public data sets."""

from pathlib import Path
from typing import Any

import pytest

from app.datasets.formats import FORMATS, detect, parser
from app.datasets.records import (
    DemonstrationRecord,
    Labeler,
    PairRecord,
    PromptRecord,
    RatedRecord,
    Record,
    ThumbRecord,
)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def read(row: dict[str, Any]) -> tuple[str, list[Record], list[str]]:
    """Return the detected format of a row, its records, and the messages about them."""
    name = detect(row)
    assert name is not None
    return name, *parser(name, "file", guessed=True)(row)


def pair_of(row: dict[str, Any]) -> PairRecord:
    _, (record,), _ = read(row)
    assert isinstance(record, PairRecord)
    return record


def better_of(pair: PairRecord) -> tuple[str, str]:
    """Return the preferred response and the other one."""
    (judgment,) = pair.judgments
    return (pair.response_b, pair.response_a) if judgment.side > 0 else (pair.response_a, pair.response_b)


# ---- chosen and rejected ---------------------------------------------------------------------------------------------

MARKED = "\n\nHuman: Name a red fruit.\n\nAssistant:"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Name a red fruit.", "chosen": "Cherry.", "rejected": "Carrot."},
        {"prompt": MARKED, "chosen": " Cherry.", "rejected": " Carrot."},
        {"prompt": MARKED, "chosen": MARKED + " Cherry.", "rejected": MARKED + " Carrot."},
        {"chosen": MARKED + " Cherry.", "rejected": MARKED + " Carrot."},
        {
            "prompt": "Name a red fruit.",
            "chosen": [user("Name a red fruit."), assistant("Cherry.")],
            "rejected": [user("Name a red fruit."), assistant("Carrot.")],
        },
        {
            "prompt": [user("Name a red fruit.")],
            "chosen": [assistant("Cherry.")],
            "rejected": [assistant("Carrot.")],
        },
        {
            "chosen": [user("Name a red fruit."), assistant("Cherry.")],
            "rejected": [user("Name a red fruit."), assistant("Carrot.")],
            "score_chosen": 8.5,
            "score_rejected": 2.0,
        },
        {
            "conversations": [{"from": "human", "value": "Name a red fruit."}],
            "chosen": {"from": "gpt", "value": "Cherry."},
            "rejected": {"from": "gpt", "value": "Carrot."},
        },
    ],
)
def test_the_prompt_stands_once_wherever_the_row_has_it(row: dict[str, Any]) -> None:
    pair = pair_of(row)
    assert list(pair.prompt.messages) == [user("Name a red fruit.")]
    assert better_of(pair) == ("Cherry.", "Carrot.")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"prompt": "Name a fish."}, "the prompt and chosen disagree"),
        ({"score_chosen": 1, "score_rejected": 2}, "score_chosen 1 is below score_rejected 2"),
        ({"chosen": [user("Else"), assistant("Cherry.")]}, "part at turn 1"),
        ({"chosen": "Cherry."}, 'must begin with "Human:"'),
        ({"prompt": "", "chosen": "A cherry.", "rejected": "A carrot."}, "a message of the prompt is empty"),
    ],
)
def test_rows_that_contradict_themselves_are_refused(values: dict[str, Any], reason: str) -> None:
    fruit = user("Name a red fruit.")
    row = {"chosen": [fruit, assistant("Cherry.")], "rejected": [fruit, assistant("Carrot.")]} | values
    with pytest.raises(ValueError, match=reason):
        read(row)


def test_without_a_prompt_the_common_beginning_is_the_prompt_and_that_is_told() -> None:
    name, (pair,), told = read({"chosen": "The sky is blue.", "rejected": "The sky is blurred."})
    assert isinstance(pair, PairRecord)
    assert (name, list(pair.prompt.messages)) == ("preferences", [user("The sky is")])
    assert better_of(pair) == (" blue.", " blurred.")
    assert "has no prompt" in told[0]
    with pytest.raises(ValueError, match="no common beginning"):
        read({"chosen": "Blue.", "rejected": "Green."})


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Why?", "chosen": "  Rye.\n", "rejected": "\tMud. "},
        {"prompt": [user("Why?")], "chosen": [assistant("  Rye.\n")], "rejected": [assistant("\tMud. ")]},
        {"chosen": "\n\nHuman: Why?\n\nAssistant:   Rye.\n", "rejected": "\n\nHuman: Why?\n\nAssistant: \tMud. "},
    ],
)
def test_spaces_around_a_response_are_kept(row: dict[str, Any]) -> None:
    assert better_of(pair_of(row)) == ("  Rye.\n", "\tMud. ")


# ---- messages --------------------------------------------------------------------------------------------------------


def test_content_parts_of_text_are_joined() -> None:
    parts = [{"type": "text", "text": "Name "}, {"type": "text", "text": "a fish.", "image_url": None}]
    _, (record,), _ = read({"prompt": [{"role": "user", "content": parts, "tool_calls": None}]})
    assert isinstance(record, PromptRecord)
    assert list(record.messages) == [user("Name a fish.")]


CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look", "arguments": "{}"}}]}


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([user("Look."), CALL, {"role": "tool", "content": "42"}, assistant("42.")], "a message with tool_calls"),
        ([user("Look."), {"role": "tool", "content": "42"}, assistant("42.")], "the role tool"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, assistant("42.")],
            "a content part of the type image_url",
        ),
    ],
)
@pytest.mark.parametrize("shape", ["messages", "prompt", "preference", "response"])
def test_what_a_message_would_lose_is_refused_by_name(messages: list[Any], reason: str, shape: str) -> None:
    rows: dict[str, dict[str, Any]] = {
        "messages": {"messages": messages},
        "prompt": {"prompt": messages[:-1]},
        "preference": {"chosen": messages, "rejected": [*messages[:-1], assistant("43.")]},
        "response": {"prompt": messages[:-1], "response_a": "42.", "response_b": "43."},
    }
    with pytest.raises(ValueError, match=reason):
        read(rows[shape])


def test_what_is_left_out_inside_messages_is_named() -> None:
    row = {"messages": [user("Hi") | {"name": "Ann", "weight": None}, assistant("Hello")], "id": 3, "meta": None}
    assert FORMATS["demonstrations"].line.ignored(row) == {"messages[].name", "id"}


def test_what_is_left_out_inside_tags_is_named() -> None:
    row = {"prompt": "Hi", "tags": {"domain": "law", "language": "de", "year": None}}
    assert FORMATS["prompts"].line.ignored(row) == {"tags.language"}


def test_a_label_that_is_no_thumb_is_told() -> None:
    row = {"prompt": "2+5?", "completion": "8", "label": "bad"}
    _, told = parser("demonstrations", "file", guessed=False)(row)
    assert told == ["The line has a label that is neither true nor false; the label was left out"]


# ---- nothing is mistaken for something else --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2+5?", "completion": "8", "label": False},
        {"prompt": [user("2+5?")], "completion": [assistant("7")], "label": True},
        {"messages": [user("2+5?"), assistant("8")], "label": 0},
    ],
)
def test_a_thumb_is_no_demonstration(row: dict[str, Any]) -> None:
    name, (thumb,), _ = read(row)
    assert isinstance(thumb, ThumbRecord)
    assert (name, thumb.liked, thumb.labeler.name) == ("unpaired", row["label"], "file")
    assert thumb.prompt.messages == [user("2+5?")]
    assert thumb.text in ("7", "8")
    with pytest.raises(ValueError, match="unpaired feedback"):
        parser("demonstrations", "file", guessed=False)(row)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "2+5?", "response": "8", "score": 0.1}, "a rated response"),
        ({"prompt": "2+5?", "completion": "8", "label": "bad"}, "nobody should imitate"),
        ({"instruction": "2+5?", "output": "8", "label": "bad"}, "nobody should imitate"),
        ({"prompt": "2+5?", "chosen": "7"}, "more than a prompt"),
        ({"prompt": "2+5?", "completions": ["2+5", "=8"], "labels": [True, False]}, "more than a prompt"),
    ],
)
def test_a_guessed_format_refuses_what_says_it_is_something_else(row: dict[str, Any], reason: str) -> None:
    name = detect(row)
    assert name is not None
    with pytest.raises(ValueError, match=reason):
        parser(name, "file", guessed=True)(row)
    assert parser(name, "file", guessed=False)(row)[0]


def test_null_nan_and_whole_floats_are_taken() -> None:
    row = {
        "prompt": "Why?",
        "response_a": "a",
        "response_b": "b",
        "preference": -2.0,
        "choice": None,
        "labeler": None,
        "duration_ms": 1500.0,
        "domain": float("nan"),
        "choices": {"ann": "A", "bob": None},
        "tags": {"domain": None, "difficulty": "hard"},
        "weight": float("nan"),
    }
    pair = pair_of(row)
    assert [(judgment.labeler.name, judgment.side) for judgment in pair.judgments] == [("file", -1), ("ann", -1)]
    assert (pair.judgments[0].preference, pair.judgments[0].duration_ms) == (-2, 1500)
    assert (pair.prompt.domain, pair.prompt.difficulty) == ("", "hard")
    assert FORMATS["pairs"].line.ignored(row) == set()


@pytest.mark.parametrize(("number", "name"), [(17, "17"), (17.0, "17"), ("17", "17")])
def test_a_labeler_may_be_a_number(number: object, name: str) -> None:
    pair = pair_of({"prompt": "Why?", "response_a": "a", "response_b": "b", "choice": "A", "labeler": number})
    assert pair.judgments[0].labeler == Labeler(name)


def test_a_rationale_without_a_choice_is_told() -> None:
    row = {"prompt": "Why?", "response_a": "a", "response_b": "b", "labeler": "ann", "rationale": "shorter"}
    _, _, told = read(row)
    assert told[0] == "The line has a rationale but no choice or preference; the rationale was left out"


# ---- public data sets ------------------------------------------------------------------------------------------------


def test_sharegpt() -> None:
    row = {
        "id": "QWJhYvA_0",
        "conversations": [
            {"from": "human", "value": "Hi"},
            {"from": "gpt", "value": "Hello!"},
            {"from": "human", "value": "Name a fish."},
            {"from": "gpt", "value": " Cod."},
        ],
    }
    name, (record,), _ = read(row)
    assert isinstance(record, DemonstrationRecord)
    assert name == "sharegpt"
    assert list(record.prompt.messages) == [user("Hi"), assistant("Hello!"), user("Name a fish.")]
    assert record.text == " Cod."
    row["conversations"][1]["from"] = "function_call"
    with pytest.raises(ValueError, match="the role function_call"):
        read(row)


def rating(value: str) -> dict[str, Any]:
    return {"Rating": value, "Rationale": "Since."}


def completion(model: str, text: str, *ratings: str) -> dict[str, Any]:
    aspects = ("instruction_following", "honesty", "truthfulness", "helpfulness")
    return {
        "annotations": dict(zip(aspects, map(rating, ratings), strict=True)),
        "custom_system_prompt": "Be honest.",
        "critique": "Fine.",
        "fine-grained_score": 4.0,
        "model": model,
        "overall_score": 1.0,
        "principle": "honesty",
        "response": text,
    }


def test_ultrafeedback() -> None:
    row = {
        "source": "evol_instruct",
        "instruction": "Name a fish.",
        "models": ["alpaca-7b", "gpt-4", "ultralm-13b"],
        "completions": [
            completion("alpaca-7b", "A dog.", "1", "N/A", "2", "1"),
            completion("gpt-4", "Cod.", "5", "5", "5", "5"),
            completion("ultralm-13b", "Eel.", "5", "5", "5", "5"),
        ],
        "correct_answers": ["None"],
        "incorrect_answers": ["None"],
    }
    name, records, _ = read(row)
    pairs = [record for record in records if isinstance(record, PairRecord)]
    assert (name, len(pairs), len({pair.ranking for pair in pairs})) == ("ultrafeedback", 3, 1)
    assert all(pair.judgments[0].labeler == Labeler("GPT-4", "ai_judge") for pair in pairs)
    found = {frozenset((pair.response_a, pair.response_b)): pair for pair in pairs}
    assert found[frozenset(("Cod.", "Eel."))].judgments[0].side == 0
    assert better_of(found[frozenset(("A dog.", "Cod."))]) == ("Cod.", "A dog.")
    sources = {pair.response_a: pair.source_a for pair in pairs} | {pair.response_b: pair.source_b for pair in pairs}
    assert sources == {"A dog.": "alpaca-7b", "Cod.": "gpt-4", "Eel.": "ultralm-13b"}
    assert "completions[].critique" in FORMATS[name].line.ignored(row)


def test_nectar() -> None:
    row = {
        "prompt": "\n\nHuman: Name a fish. \n\nAssistant: ",
        "answers": [
            {"answer": "Cod.", "model": "gpt-4", "rank": 1.0},
            {"answer": "Eel!", "model": "claude-instant-1", "rank": 2.0},
            {"answer": "A dog.", "model": "llama-2-7b-chat", "rank": 3.0},
        ],
        "turns": 1,
        "num_responses": 3,
        "source": ["sharegpt"],
        "good_natured": True,
    }
    name, records, _ = read(row)
    assert name == "nectar"
    better = [better_of(record) for record in records if isinstance(record, PairRecord)]
    assert sorted(better) == [("Cod.", "A dog."), ("Cod.", "Eel!"), ("Eel!", "A dog.")]
    assert isinstance(records[0], PairRecord)
    assert list(records[0].prompt.messages) == [user("Name a fish. ")]
    assert records[0].judgments[0].labeler == Labeler("GPT-4", "ai_judge")


@pytest.mark.parametrize(
    "answers",
    [
        {"responses": ["Cod.", "A dog.", "Cod."], "ranks": [1, 2, 3]},
        {"completions": ["Cod.", "A dog."], "scores": [0.9, 0.2]},
        {"answers": [{"text": "Cod.", "score": 2}, {"text": "A dog.", "score": "1"}]},
    ],
)
def test_ranked_answers(answers: dict[str, Any]) -> None:
    name, records, _ = read({"prompt": "Name a fish.", "judge": "llama"} | answers)
    assert name == "rankings"
    assert [better_of(record) for record in records if isinstance(record, PairRecord)] == [("Cod.", "A dog.")]
    assert isinstance(records[0], PairRecord)
    assert records[0].judgments[0].labeler == Labeler("llama", "ai_judge")


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({"responses": ["Cod."], "ranks": [1]}, "fewer than two"),
        ({"responses": ["Cod.", "Eel."], "ranks": [1]}, "1 entries for 2 answers"),
        ({"responses": [{"text": "Cod.", "rank": 1}, {"text": "Eel."}]}, "answer 2 must have one rank"),
        ({"responses": [str(n) for n in range(21)], "ranks": list(range(21))}, "at most 20"),
    ],
)
def test_rankings_that_cannot_be_read(answers: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read({"prompt": "Name a fish."} | answers)


def test_helpsteer_rates_single_responses() -> None:
    rest = {"correctness": 4, "coherence": 4, "complexity": 1, "verbosity": 1}
    name, (record,), _ = read({"prompt": "Name a fish.", "response": "Cod.", "helpfulness": 4} | rest)
    assert isinstance(record, RatedRecord)
    assert (name, record.response.rating, record.labeler) == ("rated", 4, Labeler("file"))


def test_helpsteer_preferences() -> None:
    new = {
        "domain": "stem",
        "language": "english",
        "context": [user("Name a fish.")],
        "response1": "Cod.",
        "response2": "A dog.",
        "overall_preference": -3,
        "individual_preference": [{"score": -3, "reasoning": "Since."}],
    }
    old = {
        "split": "validation",
        "prompt": "Name a fish.",
        "response_1": "Cod.",
        "response_2": "A dog.",
        "preference_strength": -3,
        "preference_statement": "Response 1 is much better",
    }
    for row, split in ((new, None), (old, "heldout")):
        pair = pair_of(row)
        assert (pair.response_a, pair.judgments[0].preference, pair.prompt.split) == ("Cod.", -3, split)
        assert list(pair.prompt.messages) == [user("Name a fish.")]


def test_trl_prompts_and_completions() -> None:
    name, (prompt,), _ = read({"prompt": "The sky is"})
    assert (name, isinstance(prompt, PromptRecord)) == ("prompts", True)
    name, (demonstration,), _ = read({"prompt": [user("Sky?")], "completion": [assistant(" Blue.")]})
    assert isinstance(demonstration, DemonstrationRecord)
    assert (name, demonstration.text) == ("demonstrations", " Blue.")


def test_an_ai_judges_answers_are_its_own() -> None:
    pair = pair_of({"prompt": "Why?", "response_a": "a", "response_b": "b", "choice": "A", "judge": "gpt-5"})
    assert pair.judgments[0].labeler == Labeler("gpt-5", "ai_judge")
    with pytest.raises(ValueError, match="a labeler and an AI judge"):
        pair_of({"prompt": "Why?", "response_a": "a", "response_b": "b", "choice": "A", "judge": "x", "labeler": "y"})


def test_every_format_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "import.md").read_text()
    assert [name for name in FORMATS if f"| `{name}` |" not in text] == []

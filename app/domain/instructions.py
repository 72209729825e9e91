"""Instructions that a program can verify, such as word counts, bullets, case or JSON.

They follow IFEval (Zhou et al. 2023, Instruction-Following Evaluation for Large Language Models). Each checker reads
only the answer. No pattern comes from a file and none of ours backtracks, so the time depends only on the answer's
length.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

Kind = Literal["count", "text", "texts", "letter"]


class Argument(NamedTuple):
    """A field of an instruction. `count`: a whole number from 0; `texts`: a list of texts, or a single text."""

    kind: Kind
    is_required: bool = True


AT_LEAST, AT_MOST = Argument("count", False), Argument("count", False)
BOUNDS = {"at_least": AT_LEAST, "at_most": AT_MOST}


class Instruction(NamedTuple):
    """An instruction that can be verified.

    Attributes:
        follows: function of the answer and the arguments that returns whether the answer follows the instruction.
        arguments: arguments by name. If both bounds are optional, at least one must be given.
        about: description for people of what the answer must be.
    """

    follows: Callable[..., bool]
    about: str
    arguments: Mapping[str, Argument] = {}


def within(n: int, at_least: int | None = None, at_most: int | None = None) -> bool:
    return (at_least is None or n >= at_least) and (at_most is None or n <= at_most)


# ---- counting --------------------------------------------------------------------------------------------------------

_WORD = re.compile(r"\w+(?:['’.,-]\w+)*")
# A dot in these does not end a sentence: "e.g. this", "Dr. Who", "3.5", "J. R. R.".
_NO_END = re.compile(r"\b(?:e\.g|i\.e|etc|vs|mr|mrs|ms|dr|prof|st|jr|sr|no|fig|[A-Za-z])\.(?=\s+\S)", re.IGNORECASE)
_END = re.compile(r"(?<![.!?…])[.!?…]+[\"'”’)\]]*(?:\s|$)")
_NUMBERED = r"[ \t]+(?:\d+|[ivxlc]+|[a-z])\b"  # Section 2, Section IV, Section B
_BULLET = re.compile(r"^\s{0,8}(?:[-*+•]|\d{1,3}[.)]) +\S", re.MULTILINE)


def words_of(text: str) -> list[str]:
    """Return runs of letters and digits; `don't`, `well-known` and `3.5` are one word each."""
    return _WORD.findall(text)


def sentences(text: str) -> int:
    """Count sentences by their end marks; text after the last mark is one more. Each list item is a sentence."""
    n = 0
    for line in text.splitlines():
        line = _NO_END.sub(lambda found: found[0][:-1], re.sub(r"^\s*\d{1,3}[.)]\s+", "", line)).strip()
        ends = list(_END.finditer(line))
        rest = line[ends[-1].end() :] if ends else line
        n += len(ends) + bool(words_of(rest))
    return n


def paragraphs(text: str) -> int:
    """Count parts between blank lines, or between lines of asterisks (which IFEval asks for)."""
    return sum(bool(part.strip()) for part in re.split(r"\n[ \t]*(?:\*\*\*+[ \t]*)?\n", text))


def bullets(text: str) -> int:
    """Count the items of bulleted and numbered lists."""
    return len(_BULLET.findall(text))


def occurrences(text: str, phrase: str) -> int:
    """Count how often a text has a phrase as whole words, ignoring case and spacing. `0` is not in `18.0`."""
    text, phrase = _flat(text), _flat(phrase)
    before = r"(?<!\w)(?<!\d[.,])" if phrase[:1].isalnum() else ""
    after = r"(?!\w)(?![.,]\d)" if phrase[-1:].isalnum() else ""
    return len(re.findall(before + re.escape(phrase) + after, text)) if phrase else 0


def _flat(text: str) -> str:
    return " ".join(text.replace("’", "'").casefold().split())


def _begins_a_line(text: str, marker: str, rest: str = "") -> int:
    """Count lines that start with the marker, after nothing but marks, and continue with the pattern `rest`."""
    return len(re.findall(rf"^[^\w\n]*{re.escape(marker)}{rest}", text, re.MULTILINE | re.IGNORECASE))


def _letters(text: str) -> str:
    return "".join(character for character in text if character.isalpha())


def _is_json(text: str) -> bool:
    fenced = re.fullmatch(r"```(?:json)?\s*\n(.*?)\n?```", text.strip(), re.DOTALL | re.IGNORECASE)
    try:
        return isinstance(json.loads(fenced[1] if fenced else text), dict | list)
    except (ValueError, RecursionError):
        return False


def _is_title(text: str) -> bool:
    return any(words_of(title) for title in re.findall(r"<<([^<>\n]*)>>", text))


def _is_quoted(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and (text[0], text[-1]) in {('"', '"'), ("“", "”")}


def _ends(text: str, phrase: str) -> bool:
    return _flat(text.rstrip().rstrip("\"”'’ ")).endswith(_flat(phrase).rstrip("\"”'’ "))


def _is_one_of(text: str, options: Sequence[str]) -> bool:
    return _bare(text) in {_bare(option) for option in options}


def _bare(text: str) -> str:
    return _flat(text).strip(" .!\"'“”*")


INSTRUCTIONS: dict[str, Instruction] = {
    "words": Instruction(
        lambda said, **bounds: within(len(words_of(said)), **bounds), "has this number of words", dict(BOUNDS)
    ),
    "sentences": Instruction(
        lambda said, **bounds: within(sentences(said), **bounds), "has this number of sentences", dict(BOUNDS)
    ),
    "paragraphs": Instruction(
        lambda said, **bounds: within(paragraphs(said), **bounds),
        "has this number of paragraphs, with blank lines or *** between them",
        dict(BOUNDS),
    ),
    "bullets": Instruction(
        lambda said, **bounds: within(bullets(said), **bounds),
        "has this number of items in bulleted or numbered lists",
        dict(BOUNDS),
    ),
    "highlights": Instruction(
        lambda said, **bounds: within(len(re.findall(r"\*\*[^*\n]+\*\*|\*[^*\n]+\*", said)), **bounds),
        "has this number of passages between asterisks",
        dict(BOUNDS),
    ),
    "placeholders": Instruction(
        lambda said, **bounds: within(len(re.findall(r"\[[^\[\]\n]+\]", said)), **bounds),
        "has this number of placeholders in square brackets, such as [address]",
        dict(BOUNDS),
    ),
    "capital_words": Instruction(
        lambda said, **bounds: within(
            sum(len(_letters(word)) > 1 and _letters(word).isupper() for word in words_of(said)), **bounds
        ),
        "has this number of words in capitals, each with two or more letters",
        dict(BOUNDS),
    ),
    "occurs": Instruction(
        lambda said, word, **bounds: within(occurrences(said, word), **bounds),
        "has the word or phrase this number of times",
        {"word": Argument("text"), **BOUNDS},
    ),
    "letter": Instruction(
        lambda said, letter, **bounds: within(said.casefold().count(letter.casefold()), **bounds),
        "has the letter this number of times, small or capital",
        {"letter": Argument("letter"), **BOUNDS},
    ),
    "sections": Instruction(
        lambda said, marker, **bounds: within(_begins_a_line(said, marker, _NUMBERED), **bounds),
        "has this number of sections that begin with the marker and a number, such as SECTION 1",
        {"marker": Argument("text"), **BOUNDS},
    ),
    "includes": Instruction(
        lambda said, words: all(occurrences(said, word) for word in words),
        "has each of these words or phrases",
        {"words": Argument("texts")},
    ),
    "excludes": Instruction(
        lambda said, words: not any(occurrences(said, word) for word in words),
        "has none of these words or phrases",
        {"words": Argument("texts")},
    ),
    "lowercase": Instruction(lambda said: bool(_letters(said)) and said == said.lower(), "has no capital letter"),
    "uppercase": Instruction(lambda said: bool(_letters(said)) and said == said.upper(), "has capital letters only"),
    "no_comma": Instruction(lambda said: "," not in said and "，" not in said, "has no comma"),
    "json": Instruction(_is_json, "is a JSON object or list and nothing else; a code fence around it is fine"),
    "quoted": Instruction(_is_quoted, "stands in double quotation marks as a whole"),
    "title": Instruction(_is_title, "has a title in double angle brackets, such as <<A poem>>"),
    "starts_with": Instruction(
        lambda said, phrase: _flat(said).startswith(_flat(phrase)),
        "begins with this phrase, for example the question repeated",
        {"phrase": Argument("text")},
    ),
    "ends_with": Instruction(_ends, "ends with this phrase", {"phrase": Argument("text")}),
    "postscript": Instruction(
        lambda said, marker: _begins_a_line(said, marker) > 0,
        "has a line that begins with the marker, such as P.S.",
        {"marker": Argument("text")},
    ),
    "one_of": Instruction(_is_one_of, "is one of these options and nothing else", {"options": Argument("texts")}),
}


# ---- instructions in files -------------------------------------------------------------------------------------------


def arguments_of(given: Any) -> tuple[str, dict[str, Any]]:
    """Return the name and arguments of an instruction from a file: `{"name": "words", "at_most": 50}`.

    Raises:
        ValueError: it is not a valid instruction; the message says why.
    """
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        raise ValueError('write each instruction as {"name": "words", "at_most": 50}')
    name, rest = given["name"], {key: value for key, value in given.items() if key != "name"}
    known = INSTRUCTIONS.get(name)
    if known is None:
        raise ValueError(f"there is no instruction “{name}”; there are {', '.join(INSTRUCTIONS)}")
    if unknown := [key for key in rest if key not in known.arguments]:
        takes = ", ".join(known.arguments) or "nothing else"
        raise ValueError(f"the instruction {name} takes no “{unknown[0]}”, only {takes}")
    if lacking := [key for key, argument in known.arguments.items() if argument.is_required and key not in rest]:
        raise ValueError(f"the instruction {name} needs “{lacking[0]}”")
    if "at_least" in known.arguments and not {"at_least", "at_most"} & rest.keys():
        raise ValueError(f"the instruction {name} needs “at_least”, “at_most” or both")
    found = {key: _argument(f"{name}: {key}", value, known.arguments[key].kind) for key, value in rest.items()}
    if found.get("at_most") is not None and found.get("at_least", 0) > found["at_most"]:
        raise ValueError(f"{name}: at_least is more than at_most, which no answer can follow")
    return name, found


def follows(given: Mapping[str, Any], answer: str) -> bool:
    """Return whether an answer follows an instruction that `arguments_of` has accepted."""
    name, arguments = arguments_of(given)
    return INSTRUCTIONS[name].follows(answer, **arguments)


def _argument(where: str, value: Any, kind: Kind) -> Any:
    if kind == "count":
        if type(value) is not int or not 0 <= value <= 100_000:
            raise ValueError(f"{where} must be a whole number from 0 to 100,000")
        return value
    if kind == "texts":
        return texts_of(where, value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where} must be a text that is not empty")
    if kind == "letter" and len(value) != 1:
        raise ValueError(f"{where} must be one letter")
    return value


def texts_of(where: str, value: Any) -> list[str]:
    """Return a text or a list of texts as a list.

    Raises:
        ValueError: the value is something else, or a text is empty.
    """
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not found or not all(isinstance(each, str) and each.strip() for each in found):
        raise ValueError(f"{where} must be a text or a list of texts, none of them empty")
    return found

"""A preview of an import, with counts and examples for a person to check before anything is written."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from app.datasets.reading import FileContent, Problems
from app.datasets.records import (
    DemonstrationRecord,
    JudgmentRecord,
    Labeler,
    PairRecord,
    PromptRecord,
    Record,
    ThumbRecord,
)
from app.datasets.service import Plan

FILES = 20
ROWS = 5  # per file
MESSAGES = 6  # the last messages of a conversation
EXCERPT = 400
SIDES = {-1: "A is better", 0: "a tie", 1: "B is better"}


@dataclass(frozen=True)
class PreviewRow:
    """A line of a file, and what an import would make of it.

    Attributes:
        texts: (name, text) of each text that would be imported.
        refused: why the line would not be imported; empty if it would be.
    """

    line: int
    becomes: str
    texts: Sequence[tuple[str, str]] = ()
    refused: str = ""


@dataclass(frozen=True)
class FilePreview:
    name: str
    format: str
    lines: int
    rows: Sequence[PreviewRow]


@dataclass(frozen=True)
class Preview:
    """adds: how many prompts, comparisons, judgments, demonstrations and thumbs are new; present: how many exist
    already or are repeated. n_files: number of all files; `files` has the first ones.
    """

    files: Sequence[FilePreview]
    n_files: int
    adds: Counter[str]
    present: Counter[str]
    problems: Problems
    notes: Sequence[str]


def preview(plan: Plan) -> Preview:
    files = [
        FilePreview(content.name, content.format, content.lines, _rows(content, plan)) for content in plan.files[:FILES]
    ]
    return Preview(files, len(plan.files), plan.adds, plan.checked.repeated, plan.checked.problems, plan.notes)


def _rows(content: FileContent, plan: Plan) -> list[PreviewRow]:
    """Return the first lines, whether accepted or refused."""
    refused = {problem.line: problem.reason for problem in plan.checked.problems if problem.file == content.name}
    records: dict[int, list[Record]] = {}
    for located in content.records:
        if len(records) >= ROWS and located.line not in records:
            break
        records.setdefault(located.line, []).append(located.record)
    lines = sorted({*records, *refused})[:ROWS]
    return [_row(line, records.get(line, []), refused.get(line, ""), plan) for line in lines]


def _row(line: int, records: Sequence[Record], refused: str, plan: Plan) -> PreviewRow:
    if not records:
        return PreviewRow(line, "", refused=refused)
    record = records[0]
    if isinstance(record, JudgmentRecord):
        return PreviewRow(line, f"A judgment on pair {record.pair_id}. {_said(record)}", refused=refused)
    prompt = record.prompt if not isinstance(record, PromptRecord) else record
    shown = prompt.messages[-MESSAGES:]
    texts = [(message["role"].capitalize(), _excerpt(message["content"])) for message in shown]
    if left_out := len(prompt.messages) - len(shown):
        texts.insert(0, ("Earlier messages", f"{left_out:,}, not shown"))
    if isinstance(record, DemonstrationRecord):
        texts.append(("Answer to imitate", _excerpt(record.text)))
        becomes = f"A demonstration by {record.source}"
    elif isinstance(record, ThumbRecord):
        texts.append(("Response", _excerpt(record.text)))
        becomes = f"A thumb {'up' if record.liked else 'down'} by {_name(record.labeler)}"
    elif isinstance(record, PairRecord):
        texts += [("Response A", _excerpt(record.response_a)), ("Response B", _excerpt(record.response_b))]
        becomes = _pairs([each for each in records if isinstance(each, PairRecord)])
    else:
        becomes = "A prompt"
    split = plan.splits.get(prompt.digest, "train").replace("heldout", "held out")
    return PreviewRow(line, f"{becomes}. Prompt: {split}.", texts, refused)


def _pairs(pairs: Sequence[PairRecord]) -> str:
    first = pairs[0]
    said = " ".join(_said(judgment) for judgment in first.judgments[:ROWS]) or "Nobody has judged it yet."
    if len(first.judgments) > ROWS:
        said += f" And {len(first.judgments) - ROWS} more."
    if first.gold is not None:
        said = f"Its known answer is {first.gold}. {said}"
    if len(pairs) > 1:
        return f"A ranking, {len(pairs)} comparisons. The first: {said}".removesuffix(".")
    return f"A comparison. {said}".removesuffix(".")


def _said(judgment: JudgmentRecord) -> str:
    strength = f" ({judgment.preference:+d})" if judgment.preference else ""
    return f"{_name(judgment.labeler)}: {SIDES[judgment.side]}{strength}."


def _name(labeler: Labeler) -> str:
    return f"{labeler.name}{' (AI judge)' if labeler.kind == 'ai_judge' else ''}"


def _excerpt(text: str) -> str:
    return text if len(text) <= EXCERPT else f"{text[:EXCERPT]}…"

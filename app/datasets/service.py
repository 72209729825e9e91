"""Importing files: a plan of everything they contain, which can be shown first, then is written in one transaction."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sqlalchemy.orm import Session

from app.audit import audit
from app.datasets import queries
from app.datasets.checking import Checked, Known, check
from app.datasets.containers import Bounds
from app.datasets.reading import FileContent, ImportFile, Problems, Progress, place, printable, read
from app.datasets.records import JudgmentRecord, Labeler, PairRecord, PromptRecord, ThumbRecord
from app.datasets.writing import write
from app.errors import InvalidInput
from app.models import DataImport, Project, Rubric
from app.projects import service as projects
from app.prompts import service as prompts
from app.prompts.service import NewPrompt
from app.rubrics import service as rubrics

# Marks that separate turns in transcripts and in the chat templates of common models.
MARKS = ("\n\nHuman:", "\n\nAssistant:", "<|im_start|>", "<|start_header_id|>", "<|user|>", "<start_of_turn>", "[INST]")
GUIDELINE = """\
The judgments of this version were imported. The instructions to their labelers are part of the data set they came from.
"""
SHOWN_PROBLEMS = 20
SHOWN_NOTES = 200


@dataclass(frozen=True)
class ImportOptions:
    """format: one of app.datasets.formats.FORMATS; None detects it. source: name for labelers and responses without
    one. heldout_share: of the prompts whose line gives no split. split_by: the unit that is held out as a whole.
    ai_judge: all judgments in the files are an AI judge's. max_bytes: of all files together, after unpacking.
    """

    format: str | None = None
    source: str | None = None
    skip_invalid: bool = False
    heldout_share: float = 0.0
    split_by: Literal["prompt", "topic"] = "prompt"
    ai_judge: bool = False
    max_bytes: int = 4 << 30


@dataclass(frozen=True)
class Plan:
    """What an import would do, before anything is written.

    new: prompts that the project does not have. splits: the split of each prompt in the files, by digest.
    """

    files: Sequence[FileContent]
    rubric: Rubric
    known: Known
    checked: Checked
    new: Sequence[NewPrompt]
    splits: Mapping[str, str]
    notes: Sequence[str]

    @property
    def adds(self) -> Counter[str]:
        """Count the new prompts, comparisons, judgments, demonstrations and thumbs."""
        return Counter(
            prompts=len(self.new),
            comparisons=len(self.checked.pairs.keys() - self.known.comparisons.keys()),
            judgments=len(self.checked.votes),
            demonstrations=len(self.checked.demonstrations),
            thumbs=len(self.checked.thumbs),
        )

    def stops(self, options: ImportOptions) -> bool:
        """Tell whether bad lines prevent the import."""
        return bool(self.checked.problems) and not options.skip_invalid


@dataclass(frozen=True)
class ImportReport:
    """What an import did.

    `added` and `present` (repeated, or there before) count prompts, comparisons, judgments, demonstrations and thumbs;
    `added` also counts labelers. `states`, `demonstrations` and `heldout` describe the whole project afterwards.
    import_id: for undoing it; None if nothing was added.
    """

    files: Sequence[FileContent]
    added: Counter[str]
    present: Counter[str]
    states: dict[str, int]  # comparisons by state
    demonstrations: dict[str, int]  # by review state
    heldout: int  # prompts in the split `heldout`
    skipped: Problems
    notes: Sequence[str]
    import_id: int | None = None


class ImportRefused(InvalidInput):
    """Some lines are invalid, so nothing was written; `problems` has the first of them and their number."""

    def __init__(self, problems: Problems) -> None:
        more = len(problems) - SHOWN_PROBLEMS
        lines = [str(problem) for problem in problems.kept[:SHOWN_PROBLEMS]]
        lines += [f"and {more:,} more"] if more > 0 else []
        count = "1 line" if len(problems) == 1 else f"{len(problems):,} lines"
        super().__init__(
            "\n  ".join([f"{count} cannot be imported, so nothing was written:", *lines]),
            "Correct them, or import again and skip invalid lines (--skip-invalid).",
        )
        self.problems = problems


def no_progress(_stage: str, _done: int, _total: int) -> None:
    """Do nothing, for callers that show no progress."""


def project_for_import(session: Session, slug: str, name: str | None, actor_id: int | None) -> Project:
    """Return the project with this address.

    If there is none, create it, with a rubric that says that its judgments were imported.
    """
    return queries.project_by_slug(session, slug) or projects.create(
        session, name=name or slug, slug=slug, actor_id=actor_id, guideline=GUIDELINE
    )


def plan(
    session: Session,
    project: Project,
    files: Sequence[ImportFile],
    options: ImportOptions = ImportOptions(),
    *,
    lock: bool = True,
    progress: Progress = no_progress,
) -> Plan:
    """Read and check the files; write nothing.

    The files are taken together: judgments find their pairs by pair_id in any of them, or in the project.

    Args:
        lock: keep other imports out of the project until the transaction ends; needed to carry the plan out.

    Raises:
        InvalidInput: a file cannot be read at all, or the files exceed the limits of one import.
        NotFound: the project has no published rubric.
    """
    bounds = Bounds(options.max_bytes)
    contents = [read(file, options.format, options.source, progress, bounds) for file in _named_apart(files)]
    if options.ai_judge:
        contents = [_by_ai_judge(content) for content in contents]
    rubric = rubrics.current(session, project)
    # One import per project at a time, without blocking people who work in it.
    if lock:
        queries.lock_project(session, project.id)
    known = queries.known(session, project.id)
    checked = check(contents, known, known.scales[rubric.id])
    splits = {
        digest: known.prompt_splits.get(digest) or _split(prompt, options)
        for digest, (prompt, _) in checked.prompts.items()
    }
    new = [
        NewPrompt(r.messages, splits[digest], r.domain, r.difficulty, r.safety_category, source)
        for digest, (r, source) in checked.prompts.items()
        if digest not in known.prompt_splits
    ]
    return Plan(contents, rubric, known, checked, new, splits, _notes(contents, checked))


def import_files(
    session: Session,
    project: Project,
    files: Sequence[ImportFile],
    options: ImportOptions = ImportOptions(),
    *,
    actor_id: int | None = None,
    progress: Progress = no_progress,
) -> ImportReport:
    """Add what the files contain and the project does not have. Importing a file again adds nothing.

    New labelers are of the kind `imported` or `ai_judge` and cannot sign in. Each comparison then wants as many
    judgments as it has (the project's overlap if it has none), and settles or goes to review by the usual rule.

    Raises:
        ImportRefused: a line is invalid and `skip_invalid` is off.
        InvalidInput, NotFound: as `plan`.
    """
    planned = plan(session, project, files, options, progress=progress)
    return carry_out(session, project, planned, options, actor_id=actor_id, progress=progress)


def carry_out(
    session: Session,
    project: Project,
    planned: Plan,
    options: ImportOptions,
    *,
    actor_id: int | None = None,
    progress: Progress = no_progress,
) -> ImportReport:
    """Write a plan made in this transaction. Errors as for `import_files`."""
    checked = planned.checked
    if planned.stops(options):
        raise ImportRefused(checked.problems)
    prompt_ids = prompts.add_many(session, project.id, planned.new)
    written = write(session, project, planned.rubric, checked, planned.known, progress)
    added = Counter(
        prompts=len(prompt_ids),
        comparisons=len(written.comparisons),
        judgments=len(written.judgments),
        labelers=written.labelers,
        demonstrations=len(written.demonstrations),
        thumbs=len(written.thumbs),
    )
    names = [content.name for content in planned.files]
    kept = None
    if added.total():
        kept = DataImport(
            project_id=project.id,
            actor_id=actor_id,
            files=names,
            added=dict(added),
            prompts=prompt_ids,
            comparisons=written.comparisons,
            judgments=written.judgments,
            demonstrations=written.demonstrations,
            thumbs=written.thumbs,
            overlaps={str(id_): overlap for id_, overlap in written.overlaps.items()},
        )
        session.add(kept)
        session.flush()
    audit(session, actor_id, "data.imported", project.id, files=names, added=dict(added))
    session.flush()
    queries.refresh_statistics(session, added.total())
    return ImportReport(
        files=planned.files,
        added=added,
        present=checked.repeated,
        states=queries.states(session, project.id),
        demonstrations=queries.demonstrations(session, project.id),
        heldout=queries.heldout(session, project.id),
        skipped=checked.problems,
        notes=planned.notes,
        import_id=kept.id if kept else None,
    )


def _named_apart(files: Sequence[ImportFile]) -> list[ImportFile]:
    """Make file names unique, by numbering files with the same name from different folders."""
    seen: Counter[str] = Counter()
    named = []
    for file in files:
        name = printable(file.name)
        seen[name] += 1
        named.append(replace(file, name=name if seen[name] == 1 else f"{seen[name]}/{name}"))
    return named


def _by_ai_judge(content: FileContent) -> FileContent:
    """Return the file's content with every labeler marked as an AI judge."""

    def marked(judgment: JudgmentRecord) -> JudgmentRecord:
        return replace(judgment, labeler=Labeler(judgment.labeler.name, "ai_judge"))

    records = []
    for located in content.records:
        record = located.record
        if isinstance(record, JudgmentRecord):
            record = marked(record)
        elif isinstance(record, ThumbRecord):
            record = replace(record, labeler=Labeler(record.labeler.name, "ai_judge"))
        elif isinstance(record, PairRecord):
            record = replace(record, judgments=tuple(marked(judgment) for judgment in record.judgments))
        records.append(replace(located, record=record))
    return replace(content, records=records)


def _split(prompt: PromptRecord, options: ImportOptions) -> str:
    """Return the prompt's own split, or one by a hash of the prompt or topic, so every import gives the same split."""
    if prompt.split:
        return prompt.split
    key = prompt.domain if options.split_by == "topic" and prompt.domain else prompt.digest
    position = int.from_bytes(hashlib.sha256(f"heldout:{key}".encode()).digest()[:8]) / 2**64
    return "heldout" if position < options.heldout_share else "train"


def _with_marks(checked: Checked) -> tuple[int, str] | None:
    """Count texts that contain a mark that separates turns, and return the first such mark; None if there is none."""
    said = itertools.chain(
        (message["content"] for prompt, _ in checked.prompts.values() for message in prompt.messages),
        (text for pair in checked.pairs.values() for text in (pair.response_a, pair.response_b)),
        (demonstration.text for demonstration in checked.demonstrations.values()),
        (thumb.text for thumb in checked.thumbs.values()),
    )
    found = [mark for text in said for mark in MARKS if mark in text]
    return (len(found), found[0].strip()) if found else None


def _notes(contents: Sequence[FileContent], checked: Checked) -> list[str]:
    """Return notes on what may surprise people about their data."""
    notes = []
    for content in contents:
        if content.split:
            notes.append(f"{content.name} is named after a test or validation split, so its prompts are held out.")
        for name, n in sorted(content.ignored.items()):
            where = f"{n:,} line{'' if n == 1 else 's'}"
            notes.append(f"{content.name}: the field {name} ({where}) is not imported here and was left out.")
        for what, (n, first) in content.told.items():
            more = f" ({n:,} lines)" if n > 1 else ""
            notes.append(f"{place(content.name, first)}{more}: {what[:1].lower()}{what[1:]}.")
    if marked := _with_marks(checked):
        notes.append(
            f"{marked[0]:,} prompts or responses contain markers of a transcript or a chat template ({marked[1]}). "
            f"They are "
            "imported as plain text. If they separate turns, give the conversation as a list of messages."
        )
    pairs = checked.pairs.values()
    empty = sum(not (pair.response_a.strip() and pair.response_b.strip()) for pair in pairs)
    same = sum(pair.response_a == pair.response_b for pair in pairs)
    for n, what in ((empty, "an empty response"), (same, "two equal responses")):
        if n:
            notes.append(f"Pairs with {what}: {n:,}, imported as they are.")
    if n := checked.not_taken["other"]:
        notes.append(
            f"Calibration items whose known answer here differs: {n:,}. The answer here stays. An admin can change it "
            "on the calibration page."
        )
    if n := checked.not_taken["ordinary"]:
        notes.append(
            f"Known answers to pairs that are ordinary comparisons here: {n:,}, not imported. A reviewer who decides "
            "such a comparison can make it a calibration item."
        )
    if len(notes) > SHOWN_NOTES:
        return [*notes[:SHOWN_NOTES], f"And {len(notes) - SHOWN_NOTES:,} more notes like these."]
    return notes

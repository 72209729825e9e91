"""Importing files of prompts, pairs, judgments and demonstrations: all are checked, then written in one transaction."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy.orm import Session

from app.accounts.service import audit
from app.datasets import queries
from app.datasets.checking import Checked, check
from app.datasets.reading import FileContent, ImportFile, Problem, Progress, read
from app.datasets.records import PromptRecord
from app.datasets.writing import write
from app.errors import InvalidInput
from app.models import Project
from app.projects import service as projects
from app.prompts import service as prompts
from app.prompts.service import NewPrompt
from app.rubrics import service as rubrics

GUIDELINE = """\
The judgments of this version were imported. What their labelers were told stands with the data set they came from.
"""
SHOWN_PROBLEMS = 20


@dataclass(frozen=True)
class ImportOptions:
    """format: one of app.datasets.formats.FORMATS, or none to find it. source: names labelers and responses that have
    no name. heldout_share: of the prompts whose line gives no split. split_by: what is held out as a whole.
    """

    format: str | None = None
    source: str | None = None
    skip_invalid: bool = False
    heldout_share: float = 0.0
    split_by: Literal["prompt", "topic"] = "prompt"


@dataclass(frozen=True)
class ImportReport:
    """What an import did. `added` and `present` (said again, or there before) count prompts, comparisons, judgments and
    demonstrations; `added` also labelers. `states`, `demonstrations` and `heldout` are of the whole project afterwards.
    """

    files: Sequence[FileContent]
    added: Counter[str]
    present: Counter[str]
    states: dict[str, int]  # comparisons by state
    demonstrations: dict[str, int]  # by review state
    heldout: int  # prompts in the split heldout
    skipped: Sequence[Problem]
    notes: Sequence[str]


class ImportRefused(InvalidInput):
    """Some lines cannot be accepted, so nothing was written; `problems` has them all."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        more = len(problems) - SHOWN_PROBLEMS
        lines = [str(problem) for problem in problems[:SHOWN_PROBLEMS]] + ([f"and {more:,} more"] if more > 0 else [])
        count = "1 line" if len(problems) == 1 else f"{len(problems):,} lines"
        super().__init__(
            "\n  ".join([f"{count} cannot be imported, so nothing was written:", *lines]),
            "Correct them, or import again and choose to skip invalid lines (--skip-invalid).",
        )
        self.problems = problems


def no_progress(_stage: str, _done: int, _total: int) -> None:
    """For callers that show none."""


def project_for_import(session: Session, slug: str, name: str | None, actor_id: int | None) -> Project:
    """The project with this address; made, with a rubric that says its judgments were imported, when there is none."""
    return queries.project_by_slug(session, slug) or projects.create(
        session, name=name or slug, slug=slug, actor_id=actor_id, guideline=GUIDELINE
    )


def import_files(
    session: Session,
    project: Project,
    files: Sequence[ImportFile],
    options: ImportOptions = ImportOptions(),
    *,
    actor_id: int | None = None,
    progress: Progress = no_progress,
) -> ImportReport:
    """Adds what the files hold and the project does not have. Importing a file again adds nothing.

    The files are taken together: judgments find their pairs by pair_id in any of them, or in the project. New labelers
    are of the kind `imported` and cannot sign in. Each comparison then wants as many judgments as it has (the project's
    overlap if none) and settles or goes to review by the same rule as those made here.

    Raises:
        ImportRefused: a line is invalid and `skip_invalid` is off.
        InvalidInput: a file cannot be read at all.
        NotFound: the project has no published rubric.
    """
    contents = [read(file, options.format, options.source, progress) for file in files]
    rubric = rubrics.current(session, project)
    # One import a project at a time, without holding up anybody who works in it.
    queries.lock_project(session, project.id)
    known = queries.known(session, project.id)
    checked = check(contents, known, rubric.strengths, allow_tie=rubric.allow_tie)
    if checked.problems and not options.skip_invalid:
        raise ImportRefused(checked.problems)
    new = [
        NewPrompt(r.messages, _split(r, options), r.domain, r.difficulty, r.safety_category, source)
        for r, source in checked.prompts.values()
    ]
    added = Counter(prompts=prompts.add_many(session, project.id, new))
    added += write(session, project, rubric, checked, known, progress)
    report = ImportReport(
        files=contents,
        added=added,
        present=checked.repeated,
        states=queries.states(session, project.id),
        demonstrations=queries.demonstrations(session, project.id),
        heldout=queries.heldout(session, project.id),
        skipped=checked.problems,
        notes=_notes(contents, checked),
    )
    audit(session, actor_id, "data.imported", project.id, files=[file.name for file in files], added=dict(added))
    session.flush()
    return report


def _split(prompt: PromptRecord, options: ImportOptions) -> str:
    """The prompt's own split, or by a hash of what is held out as a whole: the same in every import."""
    if prompt.split:
        return prompt.split
    key = prompt.domain if options.split_by == "topic" and prompt.domain else prompt.digest
    position = int.from_bytes(hashlib.sha256(f"heldout:{key}".encode()).digest()[:8]) / 2**64
    return "heldout" if position < options.heldout_share else "train"


def _notes(contents: Sequence[FileContent], checked: Checked) -> list[str]:
    """What a person may not expect of their data."""
    notes = [
        f"{content.name}: the field {name} ({lines:,} lines) has no place here and was left out."
        for content in contents
        for name, lines in sorted(content.ignored.items())
    ]
    pairs = checked.pairs.values()
    empty = sum(not (pair.response_a.strip() and pair.response_b.strip()) for pair in pairs)
    same = sum(pair.response_a == pair.response_b for pair in pairs)
    for n, what in ((empty, "an empty response"), (same, "two equal responses")):
        if n:
            notes.append(f"Pairs with {what}: {n:,}, imported as they are.")
    if n := checked.not_taken["other"]:
        notes.append(
            f"Calibration items with another known answer here: {n:,}, which stays. An admin can change it on the page "
            "of the calibration items."
        )
    if n := checked.not_taken["ordinary"]:
        notes.append(
            f"Known answers to pairs that are ordinary comparisons here: {n:,}, not taken. A reviewer who decides such "
            "a comparison can make a calibration item of it."
        )
    return notes

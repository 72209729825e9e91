"""Reading a full export back into a new project, equal to the one it was written from."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy.exc import DataError, IntegrityError
from sqlalchemy.orm import Session

from app.access import members
from app.audit import audit
from app.datasets import full_queries, queries
from app.datasets.containers import Bounds, rows
from app.datasets.full import (
    KINDS,
    LINES,
    AnyLine,
    ComparisonLine,
    DemonstrationLine,
    JudgmentLine,
    LabelerLine,
    ProjectLine,
    PromptLine,
    RankingLine,
    ResponseLine,
    RubricLine,
    ThumbLine,
)
from app.datasets.reading import ImportFile, Progress, reason_of
from app.documents import RubricContent
from app.errors import Conflict, InvalidInput, PrefloopError
from app.models import (
    Adjudication,
    Comparison,
    Completion,
    Demonstration,
    Judgment,
    Project,
    Prompt,
    Ranking,
    Rubric,
    Thumb,
    User,
)
from app.projects.service import slugify
from app.prompts.service import check_messages, digest

TABLES: dict[str, type[Any]] = {
    "rubric": Rubric,
    "labeler": User,
    "prompt": Prompt,
    "response": Completion,
    "ranking": Ranking,
    "comparison": Comparison,
    "judgment": Judgment,
    "demonstration": Demonstration,
    "thumb": Thumb,
}
AGAIN = "Export the project again. Not every part of a full export can be edited by hand."


@dataclass(frozen=True)
class Restored:
    """The new project, and how many lines of each kind it was made from."""

    project: Project
    counts: Counter[str]

    def describe(self) -> str:
        return ", ".join(f"{n:,} {kind}{'' if n == 1 else 's'}" for kind, n in self.counts.items())


def is_full(file: ImportFile, bounds: Bounds) -> bool:
    """Tell whether the file's first line is that of a full export."""
    found = rows(file.path, file.name, bounds, lambda *_: None)
    first = next((values for _, values in found if values is not None), None)
    return isinstance(first, dict) and "full_export" in first


def only(files: Sequence[ImportFile], bounds: Bounds | None = None) -> ImportFile | None:
    """Return the full export among these files; None if there is none.

    Args:
        bounds: what may be read from all of them to find out.

    Raises:
        InvalidInput: there are other files beside it, or the bounds are exceeded.
    """
    bounds = bounds or Bounds()
    found = next((file for file in files if is_full(file, bounds)), None)
    if found is not None and len(files) > 1:
        raise InvalidInput(f"{found.name} is a full export, which becomes a new project.", "Import it alone.")
    return found


def restore(
    session: Session,
    file: ImportFile,
    progress: Progress,
    *,
    slug: str | None = None,
    actor_id: int | None = None,
    bounds: Bounds | None = None,
) -> Restored:
    """Make a project from a full export.

    Everybody named in it becomes a new labeler without an account; people become labelers of the kind `imported`. The
    rest is kept as in the file: settings, rubric versions, states, consensus, and reviewers' verdicts.

    Args:
        slug: the project's address; None: from its name, with a number added if it is taken.
        bounds: what may be read.

    Raises:
        InvalidInput: a line does not belong in such a file, or contradicts another. Nothing is written then.
        Conflict: the address is taken.
    """
    reader: _Reader | None = None
    try:
        with session.begin_nested():
            tell = partial(progress, f"reading {file.name}")
            for number, values in rows(file.path, file.name, bounds or Bounds(), tell):
                if values is None:
                    continue
                try:
                    record = _read(values)
                    if reader is None:
                        reader = _Reader(session, _project(session, record, slug))
                    else:
                        reader.take(record)
                except ValueError as error:
                    raise InvalidInput(f"{file.name}, line {number}: {reason_of(error)}.", AGAIN) from error
            if reader is None:
                raise InvalidInput(f"{file.name} holds no lines.", "Choose a full export.")
            reader.flush()
            if wrong := full_queries.wrong_digest(session, reader.project.id):
                number = reader.ids["comparison"].index(wrong) + 1
                raise InvalidInput(f"{file.name}: comparison {number} has the digest of another one.", AGAIN)
    except (IntegrityError, DataError) as error:
        name = getattr(getattr(error.orig, "diag", None), "constraint_name", None) or "a value out of range"
        raise InvalidInput(f"{file.name} contradicts itself: the database refused it ({name}).", AGAIN) from error
    counts = Counter({kind: n for kind, n in reader.counts.items() if n})
    members.first_members(session, reader.project, actor_id)
    audit(session, actor_id, "project.restored", reader.project.id, file=file.name, lines=dict(counts))
    session.flush()
    queries.refresh_statistics(session, counts.total())
    return Restored(reader.project, counts)


def _read(values: dict[str, Any] | ValueError) -> AnyLine:
    if isinstance(values, ValueError):
        raise values
    if _has_nul(values):
        raise ValueError("holds a NUL character, which the database cannot store")
    return LINES.validate_python(values)


def _has_nul(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_nul(part) for pair in value.items() for part in pair)
    if isinstance(value, list | tuple):
        return any(_has_nul(part) for part in value)
    return isinstance(value, str) and "\0" in value


def _project(session: Session, record: AnyLine, slug: str | None) -> Project:
    if not isinstance(record, ProjectLine):
        raise ValueError("a full export begins with the project's line")
    if slug and slug in full_queries.addresses(session, slug):
        raise Conflict(
            f"There is already a project with the address {slug}.",
            "A full export makes a new project: choose another address.",
        )
    project = Project(
        slug=slug or _free_address(session, record.name),
        name=record.name,
        description=record.description,
        overlap=record.overlap,
        lease_minutes=record.lease_minutes,
        review_threshold=record.review_threshold,
        labeling=record.labeling.model_dump(mode="json"),
        generation=record.generation.model_dump(mode="json"),
    )
    session.add(project)
    session.flush()
    return project


def _free_address(session: Session, name: str) -> str:
    wanted = slugify(name) or "restored"
    taken = full_queries.addresses(session, wanted)
    return next(each for n in range(1, len(taken) + 2) if (each := wanted if n == 1 else f"{wanted}-{n}") not in taken)


class _Reader:
    """Takes the lines in the order of `KINDS`, and writes them in bulk.

    Its methods raise ValueError for a line that refers to a line not above it.
    """

    def __init__(self, session: Session, project: Project) -> None:
        self.session = session
        self.project = project
        self.counts: Counter[str] = Counter()
        self.ids: dict[str, list[int]] = {kind: [] for kind in TABLES}  # by number, from 1
        self.kind = "project"
        self.waiting: list[tuple[AnyLine, dict[str, Any]]] = []
        # Later lines are checked against these, by number: the prompt of each response, the rubric version of each
        # comparison, and the content of each rubric version.
        self.prompt_of: list[int] = []
        self.rubric_of: list[int] = []
        self.rubrics: list[RubricContent] = []

    def take(self, record: AnyLine) -> None:
        kind = record.record
        if kind == "project" or KINDS.index(kind) < KINDS.index(self.kind):
            raise ValueError(f"a line of the kind {kind} cannot stand after one of the kind {self.kind}")
        if kind != self.kind:
            self.flush()
            self.kind = kind
        self.counts[kind] += 1
        if getattr(record, "number", self.counts[kind]) != self.counts[kind]:
            raise ValueError(f"its number must be {self.counts[kind]}: {kind} lines are numbered from 1 without a gap")
        self.waiting.append((record, self.row(record)))
        if len(self.waiting) == queries.CHUNK:
            self.flush()

    def at(self, kind: str, number: int | None) -> int | None:
        """Return the id of the row that a line refers to."""
        if number is None:
            return None
        if number > len(self.ids[kind]):
            raise ValueError(f"there is no {kind} {number} above it")
        return self.ids[kind][number - 1]

    def flush(self) -> None:
        if not self.waiting:
            return
        rows = [row for _, row in self.waiting]
        ids = queries.add_rows(self.session, TABLES[self.kind], rows)
        if self.kind == "comparison":
            self._add_verdicts()
        else:
            self.ids[self.kind] += ids
        self.waiting = []

    def row(self, record: AnyLine) -> dict[str, Any]:
        """Return the columns of a line."""
        about: dict[str, Any] = {"project_id": self.project.id}
        match record:
            case RubricLine():
                self.rubrics.append(record.content)
                about |= {"version": record.number, "quiz_of_version": record.quiz_of_version}
                return about | {"published_at": record.published_at} | record.content.model_dump(mode="json")
            case LabelerLine():
                kind = "imported" if record.kind == "person" else record.kind
                return {"name": record.name, "kind": kind}
            case PromptLine():
                return self._prompt(record)
            case ResponseLine():
                self.prompt_of.append(record.prompt)
                answers = {"prompt_id": self.at("prompt", record.prompt)}
                return answers | record.model_dump(exclude={"record", "number", "prompt"})
            case RankingLine():
                about["prompt_id"] = self.at("prompt", record.prompt)
                return about | record.model_dump(exclude={"record", "number", "prompt"})
            case ComparisonLine():
                return self._comparison(record)
            case JudgmentLine():
                return self._judgment(record)
            case DemonstrationLine():
                return self._demonstration(record)
            case ThumbLine():
                about |= {
                    "completion_id": self.at("response", record.response),
                    "labeler_id": self.at("labeler", record.labeler),
                    "superseded_for": "edited" if record.superseded_at else None,
                }
                return about | record.model_dump(exclude={"record", "response", "labeler"})
        raise ValueError("is the project's line again")

    def _prompt(self, record: PromptLine) -> dict[str, Any]:
        if any(len(message) < 2 for message in record.messages):
            raise ValueError("holds a message without a role or content")
        messages = [{str(name): text for name, text in message.items()} for message in record.messages]
        try:
            check_messages(messages)
        except PrefloopError as error:
            raise ValueError(error.message) from error
        about = {"project_id": self.project.id, "digest": digest(messages)}
        return about | record.model_dump(exclude={"record", "number"})

    def _comparison(self, record: ComparisonLine) -> dict[str, Any]:
        if not self.waiting:
            self._give_ids()
        number, ids = record.number, self.ids["comparison"]
        for name in ("response_a", "response_b"):
            response = getattr(record, name)
            if self.at("response", response) and self.prompt_of[response - 1] != record.prompt:
                raise ValueError(f"{name} answers prompt {self.prompt_of[response - 1]}, not {record.prompt}")
        for name in ("repeat_of", "relabel_of"):
            if (getattr(record, name) or 0) >= number:
                raise ValueError(f"{name} must be a comparison above it")
        if (record.state == "adjudicated") != (record.verdict is not None):
            raise ValueError("a comparison has a verdict if, and only if, its state is adjudicated")
        rubric_id = self.at("rubric", record.rubric_version)
        if record.verdict is not None:
            self._check_step(record.rubric_version, record.verdict.preference)
            self.at("labeler", record.verdict.reviewer)
        self.rubric_of.append(record.rubric_version)
        references = {"prompt", "response_a", "response_b", "rubric_version", "repeat_of", "relabel_of", "ranking"}
        told = record.model_dump(exclude={"record", "number", "verdict", "preference", "pair_id", *references})
        return told | {
            "id": ids[number - 1],
            "project_id": self.project.id,
            "prompt_id": self.at("prompt", record.prompt),
            "completion_a_id": self.at("response", record.response_a),
            "completion_b_id": self.at("response", record.response_b),
            "rubric_id": rubric_id,
            "repeat_of_id": self.at("comparison", record.repeat_of),
            "relabel_of_id": self.at("comparison", record.relabel_of),
            "ranking_id": self.at("ranking", record.ranking),
            "external_id": record.pair_id,
            "consensus": record.preference,
        }

    def _give_ids(self) -> None:
        """Reserve ids for the next comparisons, because some refer to others that are written in the same statement."""
        self.ids["comparison"] = self.ids["comparison"][: len(self.rubric_of)]
        self.ids["comparison"] += full_queries.new_comparison_ids(self.session, queries.CHUNK)

    def _add_verdicts(self) -> None:
        self.ids["comparison"] = self.ids["comparison"][: len(self.rubric_of)]
        rows = [
            {
                "comparison_id": row["id"],
                "reviewer_id": self.at("labeler", record.verdict.reviewer),
                "verdict": record.verdict.preference,
                "note": record.verdict.note,
                "created_at": record.verdict.created_at,
            }
            for record, row in self.waiting
            if isinstance(record, ComparisonLine) and record.verdict is not None
        ]
        queries.add_rows(self.session, Adjudication, rows)

    def _judgment(self, record: JudgmentLine) -> dict[str, Any]:
        comparison_id = self.at("comparison", record.comparison)
        version = self.rubric_of[record.comparison - 1]
        self._check_step(version, record.preference or 0)
        self._check_names(version, record)
        about: dict[str, Any] = {
            "comparison_id": comparison_id,
            "rubric_id": self.at("rubric", version),
            "labeler_id": self.at("labeler", record.labeler),
            "swapped": None if record.shown_first is None else record.shown_first == "b",
            "created_at": record.submitted_at,
        }
        return about | record.model_dump(exclude={"record", "comparison", "labeler", "shown_first", "submitted_at"})

    def _check_step(self, version: int, preference: int) -> None:
        most = self.rubrics[version - 1].strengths
        if abs(preference) > most:
            raise ValueError(f"preference {preference} is outside rubric version {version}'s {-most} to {most}")

    def _check_names(self, version: int, record: JudgmentLine) -> None:
        """Check aspects and flags against the rubric: pages look up their meaning, and count steps on its scale."""
        rubric = self.rubrics[version - 1]
        for what, said, known in (
            ("aspect", list(record.aspects), {aspect.name for aspect in rubric.aspects}),
            ("flag", record.flags, {flag.name for flag in rubric.flags}),
        ):
            if unknown := sorted(set(said) - known):
                raise ValueError(f"rubric version {version} has no {what} {unknown[0][:80]}")
        if len(set(record.flags)) < len(record.flags):
            raise ValueError("names one flag twice")
        for step in record.aspects.values():
            self._check_step(version, step)

    def _demonstration(self, record: DemonstrationLine) -> dict[str, Any]:
        references = {"prompt", "author", "rubric_version", "response", "reviewer"}
        return record.model_dump(exclude={"record", *references}) | {
            "project_id": self.project.id,
            "prompt_id": self.at("prompt", record.prompt),
            "author_id": self.at("labeler", record.author),
            "rubric_id": self.at("rubric", record.rubric_version),
            "completion_id": self.at("response", record.response),
            "reviewer_id": self.at("labeler", record.reviewer),
            "digest": hashlib.sha256(record.text.encode()).hexdigest(),
        }

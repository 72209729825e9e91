"""Writing the full export: everything about a project's judgments, so that it can be restored unchanged."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from app.datasets import export
from app.datasets import full_queries as queries
from app.datasets.full import (
    ComparisonLine,
    DemonstrationLine,
    JudgmentLine,
    LabelerLine,
    Line,
    ProjectLine,
    PromptLine,
    RankingLine,
    ResponseLine,
    RubricLine,
    ThumbLine,
)
from app.datasets.reading import Progress
from app.db import one_moment
from app.documents import LabelingSettings, RubricContent
from app.errors import InvalidInput
from app.models import Project
from app.specs import Generation

# Which fields of a line refer to which kind. A reference to a row that is not in the file becomes None.
REFERENCES = {
    "prompt": "prompt",
    "response": "response",
    "response_a": "response",
    "response_b": "response",
    "ranking": "ranking",
    "comparison": "comparison",
    "repeat_of": "comparison",
    "relabel_of": "comparison",
    "labeler": "labeler",
    "author": "labeler",
    "reviewer": "labeler",
}


def write_full(
    session: Session, project: Project, path: Path, *, pseudonyms: bool = False, progress: Progress
) -> Counter[str]:
    """Write the whole project as it is at one moment; return how many lines of each kind.

    The file appears whole or not at all. Not included are models, rounds, groups, assignments, quizzes taken, red-team
    attempts that were not accepted, the audit trail, and everything from people who were removed.

    Args:
        pseudonyms: labelers become “labeler 1” and so on; their texts stay as they are. The source of demonstrations is
            left out, because it may be a name.

    Raises:
        StorageFull: the disk is full.
        InvalidInput: the folder does not exist.
    """
    written: Counter[str] = Counter()
    bind = session.get_bind()
    assert isinstance(bind, Engine)
    # All statements must see the same moment, because answers arrive while this is written.
    with one_moment(bind) as moment, export.replacing(path) as handle:
        for n, line in enumerate(_lines(moment, project, pseudonyms), 1):
            handle.write(line.model_dump_json() + "\n")
            written[line.record] += 1
            if n % 1000 == 0:
                progress("writing lines", n, n)
    progress("writing lines", written.total(), written.total())
    return written


def check_options(kind: export.Kind, split: export.Split, columns: tuple[str, ...], pseudonyms: bool) -> None:
    """Refuse options that this kind of export does not have.

    Raises:
        InvalidInput: a full export with a split or columns, or pseudonyms in another kind.
    """
    if kind == "full" and (split != "all" or columns):
        raise InvalidInput("A full export holds everything.", "Set prompts to all and additional columns to none.")
    if kind != "full" and pseudonyms:
        raise InvalidInput(f"The export of {kind} names no labelers.", "Turn pseudonyms off.")


def _lines(session: Session, project: Project, pseudonyms: bool) -> Iterator[Line]:
    yield ProjectLine(
        pseudonyms=pseudonyms,
        name=project.name,
        description=project.description,
        overlap=project.overlap,
        lease_minutes=project.lease_minutes,
        review_threshold=project.review_threshold,
        labeling=LabelingSettings.model_validate(project.labeling),
        generation=Generation.model_validate(project.generation),
    )
    for rubric in queries.rubrics(session, project.id):
        assert rubric.version is not None  # ensured by the query's condition
        assert rubric.published_at is not None
        yield RubricLine(
            number=rubric.version,
            content=RubricContent.model_validate({name: getattr(rubric, name) for name in RubricContent.model_fields}),
            quiz_of_version=rubric.quiz_of_version,
            published_at=rubric.published_at,
        )
    numbers: dict[str, dict[int, int]] = {}
    kinds: list[tuple[str, type[Line], Callable[[Session, int], Iterator[queries.Row]]]] = [
        ("labeler", LabelerLine, queries.labelers),
        ("prompt", PromptLine, queries.prompts),
        ("response", ResponseLine, queries.responses),
        ("ranking", RankingLine, queries.rankings),
        ("comparison", ComparisonLine, queries.comparisons),
        ("judgment", JudgmentLine, queries.judgments),
        ("demonstration", DemonstrationLine, queries.demonstrations),
        ("thumb", ThumbLine, queries.thumbs),
    ]
    for kind, line, rows in kinds:
        own = numbers.setdefault(kind, {})
        for row in rows(session, project.id):
            if "id" in row:
                own[row["id"]] = row["number"] = len(own) + 1
                del row["id"]
            yield line.model_validate(_told(kind, row, numbers, pseudonyms))


def _told(kind: str, row: queries.Row, numbers: dict[str, dict[int, int]], pseudonyms: bool) -> dict[str, Any]:
    """Convert a row to its line: numbers for ids, the verdict as one object, pseudonyms if wanted."""
    told: dict[str, Any] = dict(row)
    for name in REFERENCES.keys() & told.keys():
        told[name] = numbers[REFERENCES[name]].get(told[name])
    if kind == "comparison":
        reviewer, preference = told.pop("reviewer_id"), told.pop("verdict")
        verdict = {"preference": preference, "note": told.pop("note"), "created_at": told.pop("decided_at")}
        told["verdict"] = None if preference is None else verdict | {"reviewer": numbers["labeler"][reviewer]}
    if pseudonyms and kind == "labeler":
        told["name"] = f"labeler {told['number']}"
    if pseudonyms and kind == "demonstration":
        told["source"] = ""
    return told

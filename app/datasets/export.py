"""Export in the formats that TRL's trainers read, as lists of chat messages.

Preferences are prompt, chosen and rejected; demonstrations are prompt and completion; thumbs also have a label.
"""

import contextlib
import errno
import gzip
import io
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from sqlalchemy.orm import Session

from app.datasets import queries
from app.datasets.queries import ExportedDemonstration, ExportedThumb, ExportRow
from app.datasets.reading import Progress
from app.domain import slices, thumbs
from app.domain.consensus import consensus, stored
from app.errors import InvalidInput, StorageFull
from app.models import Project

COLUMNS = ("margin", "p", "ids", "slices")
Split = Literal["all", "train", "heldout"]
# In a trainer's format, or everything (app.datasets.full_export).
Kind = Literal["preferences", "demonstrations", "thumbs", "full"]


@dataclass
class ExportCounts:
    written: int = 0
    ties: int = 0
    undecided: int = 0  # still open or in review
    evaluating: int = 0  # decided ones that evaluate policies

    def describe(self) -> str:
        left_out = [f"{self.ties:,} ties", f"{self.undecided:,} still open or in review"]
        if self.evaluating:
            left_out.append(f"{self.evaluating:,} that evaluate policies")
        return f"{self.written:,} comparisons. Left out: {', '.join(left_out)}."


@dataclass
class ThumbCounts:
    written: int = 0
    even: int = 0  # responses with as many thumbs up as down

    def describe(self) -> str:
        return f"{self.written:,} responses with a thumb. Left out: {self.even:,} with as many thumbs up as down."


def parse_columns(text: str) -> tuple[str, ...]:
    """Parse column names: `margin,ids` -> ("margin", "ids"); `all` means every column.

    Raises:
        InvalidInput: an unknown column.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if names == ("all",):
        return COLUMNS
    if unknown := set(names) - set(COLUMNS):
        raise InvalidInput(f"There is no column {', '.join(sorted(unknown))}.", f"Columns are: {', '.join(COLUMNS)}.")
    return names


def write_preferences(
    session: Session,
    project: Project,
    path: Path,
    *,
    split: Split = "all",
    columns: tuple[str, ...] = (),
    progress: Progress,
) -> ExportCounts:
    """Write every settled or adjudicated comparison with a preferred side, in the order they were created.

    The file appears whole or not at all. A reviewer's verdict replaces the judgments. Ties are left out and counted,
    because they have no chosen response. Comparisons that evaluate a policy are left out and counted too, because
    models must not train on them. Repeats are left out, because they only measure how consistent labelers are.

    Args:
        split: of the prompts.
        columns: of COLUMNS. margin: strength of the consensus, 0 to 4. p: probability that the chosen response is
            better (app.domain.consensus). ids: of comparison, prompt and judgments. slices: the prompt's tags.

    Raises:
        StorageFull: the disk is full.
        InvalidInput: the folder does not exist.
    """
    totals = queries.export_totals(session, project.id, split)
    counts = ExportCounts(undecided=totals.undecided, evaluating=totals.evaluating)
    marked = queries.has_ai_revised(session, project.id)
    with replacing(path) as handle:
        for n, row in enumerate(queries.export_rows(session, project.id, split), 1):
            line = preference_line(row, columns, marked=marked)
            if line is None:
                counts.ties += 1
            else:
                handle.write(json.dumps(line, ensure_ascii=False) + "\n")
                counts.written += 1
            if n % 500 == 0 or n == totals.decided:
                progress("writing comparisons", n, totals.decided)
    return counts


def write_demonstrations(
    session: Session,
    project: Project,
    path: Path,
    *,
    split: Split = "all",
    columns: tuple[str, ...] = (),
    progress: Progress,
) -> int:
    """Write every approved demonstration as prompt and completion, in the order they came; return how many.

    The columns ids (demonstration and prompt) and slices apply. Errors as for `write_preferences`.
    """
    total, n = queries.demonstrations(session, project.id).get("approved", 0), 0
    marked = queries.has_ai_revised(session, project.id)
    with replacing(path) as handle:
        for n, row in enumerate(queries.exported_demonstrations(session, project.id, split), 1):
            line: dict[str, Any] = {
                "prompt": row.messages,
                "completion": [{"role": "assistant", "content": row.text}],
            }
            if marked:
                line["ai_revised"] = row.ai_revised
            if "ids" in columns:
                line |= {"demonstration_id": row.demonstration_id, "prompt_id": row.prompt_id}
            if "slices" in columns:
                line["slices"] = _slices(row)
            handle.write(json.dumps(line, ensure_ascii=False) + "\n")
            if n % 500 == 0:
                progress("writing demonstrations", n, total)
    progress("writing demonstrations", n, n)
    return n


def write_thumbs(
    session: Session,
    project: Project,
    path: Path,
    *,
    split: Split = "all",
    columns: tuple[str, ...] = (),
    progress: Progress,
) -> ThumbCounts:
    """Write every response with a thumb as prompt, completion and label (true: liked by most), in the order they came.

    Responses with as many thumbs up as down are left out and counted. The columns ids (response, prompt and thumbs) and
    slices apply. Errors as for `write_preferences`.
    """
    counts = ThumbCounts()
    marked = queries.has_ai_revised(session, project.id)
    with replacing(path) as handle:
        for row in queries.exported_thumbs(session, project.id, split):
            label = thumbs.liked(row.up, row.down)
            if label is None:
                counts.even += 1
                continue
            line: dict[str, Any] = {
                "prompt": row.messages,
                "completion": [{"role": "assistant", "content": row.text}],
                "label": label,
            }
            if marked:
                line["ai_revised"] = row.ai_revised
            if "ids" in columns:
                line |= {"response_id": row.response_id, "prompt_id": row.prompt_id, "thumb_ids": row.thumb_ids}
            if "slices" in columns:
                line["slices"] = _slices(row)
            handle.write(json.dumps(line, ensure_ascii=False) + "\n")
            counts.written += 1
    progress("writing responses", counts.written, counts.written)
    return counts


def _slices(row: ExportRow | ExportedDemonstration | ExportedThumb) -> dict[str, str]:
    """Return all slice tags, empty ones included: readers that infer a schema from the first lines fail
    on later keys."""
    tags = slices.of_prompt(row.domain, row.difficulty, row.safety_category, row.split)
    return dict.fromkeys(slices.NAMES, "") | tags


def preference_line(row: ExportRow, columns: tuple[str, ...] = (), *, marked: bool = False) -> dict[str, Any] | None:
    """Return the exported object of a comparison; None for a tie.

    marked: the project has texts that an AI critic wrote. Then each line says which of its responses are, since
    readers that infer a schema from the first lines fail on later keys.
    """
    found = consensus(row.preferences, row.verdict, stored(row.consensus, row.p_b, row.p_tie))
    if found is None or found.is_tie:
        return None
    b_chosen = found.winner > 0
    chosen, rejected = (row.response_b, row.response_a) if b_chosen else (row.response_a, row.response_b)
    line: dict[str, Any] = {
        "prompt": row.messages,
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }
    if marked:
        marks = (row.ai_revised_b, row.ai_revised_a) if b_chosen else (row.ai_revised_a, row.ai_revised_b)
        line["ai_revised"] = {(True, True): "both", (True, False): "chosen", (False, True): "rejected"}.get(marks, "")
    if "margin" in columns:
        line["margin"] = abs(found.preference)
    if "p" in columns:
        line["p"] = found.p_b if b_chosen else 1 - found.p_b
    if "ids" in columns:
        line |= {"comparison_id": row.comparison_id, "prompt_id": row.prompt_id, "judgment_ids": row.judgment_ids}
    if "slices" in columns:
        line["slices"] = _slices(row)
    return line


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[str]]:
    """Write a text file (gzipped for .gz) that replaces `path` when the block ends without an error."""
    if not path.parent.is_dir():
        raise InvalidInput(f"There is no folder {path.parent}.", "Make the folder first, or choose another file.")
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as raw, contextlib.ExitStack() as stack:
            if path.name.endswith(".gz"):
                # No timestamp inside: the same comparisons give the same bytes.
                packed = stack.enter_context(gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0))
                yield stack.enter_context(io.TextIOWrapper(packed, encoding="utf-8", newline="\n"))
            else:
                yield stack.enter_context(io.TextIOWrapper(raw, encoding="utf-8", newline="\n"))
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise StorageFull(
                f"There was no room on the disk to write {path.name}.", "Free some space, then retry."
            ) from error
        raise
    finally:
        Path(temporary).unlink(missing_ok=True)

"""Import files, read line by line into records; a bad line becomes a problem with its number and reason."""

import gzip
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError
from pydantic_core import from_json

from app.datasets.formats import FORMATS, detect, parser
from app.datasets.records import Record
from app.errors import InvalidInput
from app.typed import one_line

# Longer than any conversation a model takes; a file without line breaks must not fill the memory.
MAX_LINE = 16 << 20
PROGRESS_EVERY = 500  # lines

# Told how many of how many bytes (or rows) of a named stage are done.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Problem:
    """A line that cannot be accepted; line 0 is the file as a whole."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.reason}" if self.line else f"{self.file}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Located:
    """A record and where it stands."""

    record: Record
    file: str
    line: int
    source: str


@dataclass
class FileContent:
    """What a file holds."""

    name: str
    format: str
    records: list[Located] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)  # field: lines that have it


@dataclass(frozen=True)
class ImportFile:
    """A file to read, under the name people know it by (an upload's path is a temporary one)."""

    path: Path
    name: str

    @property
    def source(self) -> str:
        """The name without its endings, which labels what came from it."""
        return self.name.removesuffix(".gz").removesuffix(".jsonl").removesuffix(".json") or self.name


def find_files(paths: list[Path]) -> list[ImportFile]:
    """The files to import: each path itself, or of a folder its JSONL files.

    Raises:
        InvalidInput: a path does not exist, or a folder holds no such file.
    """
    found = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.name.endswith((".jsonl", ".jsonl.gz")))
            if not inside:
                raise InvalidInput(f"The folder {path} holds no .jsonl or .jsonl.gz file.")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise InvalidInput(f"There is no file {path}.", "Check the path.")
    return [ImportFile(path, path.name) for path in found]


def read(file: ImportFile, format_: str | None, source: str | None, progress: Progress) -> FileContent:
    """Reads a whole file; a bad line is a problem in the answer, not an error.

    Args:
        format_: one of FORMATS; none: found from the keys of the first line that is an object.
        source: the name for labelers and responses the lines give none; none: the file's.

    Raises:
        InvalidInput: the file cannot be read, is empty, or its format is not known.
    """
    name = format_ or _detect(file)
    source = one_line(source or file.source)
    parse, known = parser(name, source), FORMATS[name].line.known_fields()
    content = FileContent(file.name, name)
    for number, line in _lines(file, progress):
        try:
            values = _object(line)
            content.ignored.update(values.keys() - known)
            content.records.append(Located(parse(values), file.name, number, source))
        except ValueError as error:
            content.problems.append(Problem(file.name, number, _reason(error)))
    return content


def _detect(file: ImportFile) -> str:
    first: tuple[int, str] | None = None  # the first line's number and why it does not tell the format
    for number, line in _lines(file, lambda *_: None):
        try:
            values = _object(line)
        except ValueError as error:
            first = first or (number, _reason(error))
            continue
        if found := detect(values):
            return found
        first = first or (number, f"has the fields {', '.join(sorted(values)) or '(none)'}, which fit no known format")
        break
    if first is None:
        raise InvalidInput(f"{file.name} holds no lines.", "Choose a file with one JSON object on each line.")
    formats = "; ".join(f"{name} ({format_.about})" for name, format_ in FORMATS.items())
    raise InvalidInput(f"{file.name}, line {first[0]}: {first[1]}.", f"Formats are: {formats}.")


def _object(line: bytes) -> dict[str, object]:
    values = from_json(line, allow_inf_nan=False)
    if not isinstance(values, dict):
        raise ValueError("is not a JSON object (write one object on each line, without a list around them)")
    return values


def _lines(file: ImportFile, progress: Progress) -> Iterator[tuple[int, bytes]]:
    """The numbered lines that are not blank; gzip is known by its first bytes, not by the name."""
    total = file.path.stat().st_size
    try:
        with file.path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            lines: BinaryIO = gzip.GzipFile(fileobj=raw) if packed else raw  # type: ignore[assignment]
            number = 0
            while line := lines.readline(MAX_LINE + 1):
                number += 1
                if len(line) > MAX_LINE:
                    raise InvalidInput(f"{file.name}, line {number} is longer than {MAX_LINE >> 20} MB.")
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")  # the byte-order mark some editors write
                if line.strip():
                    yield number, line
                if number % PROGRESS_EVERY == 0:
                    progress(f"reading {file.name}", raw.tell(), total)
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidInput(
            f"{file.name} cannot be read: {error}.", "Is the file complete? Copy or download it again."
        ) from error
    progress(f"reading {file.name}", total, total)


def _reason(error: ValueError) -> str:
    """Our own words of an error, or pydantic's, by field."""
    if not isinstance(error, ValidationError):
        return str(error)
    reasons = []
    for detail in error.errors(include_url=False)[:3]:
        where = ".".join(str(part) for part in detail["loc"])
        said = detail["msg"].removeprefix("Value error, ")
        reasons.append(f"{where}: {said}" if where else said)
    return "; ".join(reasons)

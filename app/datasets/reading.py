"""Reading import files row by row into records; a bad row becomes a problem with its number and reason."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from app.datasets.containers import Bounds, check_fields, rows
from app.datasets.formats import FORMATS, detect, parser
from app.datasets.records import Rated, RatedRecord, Record, ranked_pairs
from app.datasets.transcripts import HALF_CHARACTER
from app.errors import InvalidInput
from app.form_fields import one_line

ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
MAX_PROBLEMS = 1000  # problems kept and shown; the rest are counted
MAX_REASON = 500
MAX_NAMES = 100  # limit on the names of ignored fields per file, and on its notes
MAX_NAME = 80
# A file or folder name that says which split it is.
_SPLIT = re.compile(r"(?:^|[-_./])(train|test|validation|valid|val|dev|eval)(?=$|[-_./])")
# Files of Hugging Face `datasets` that describe the data.
_NOT_DATA = ("dataset_info.json", "dataset_dict.json", "state.json", "dataset_infos.json")

# Called with (stage, done, total), in bytes or rows.
Progress = Callable[[str, int, int], None]


def printable(text: str) -> str:
    """Replace characters that a page, a terminal or the database would not accept."""
    return "".join(character if character.isprintable() else "�" for character in text)


def place(file: str, line: int) -> str:
    """Describe a position for people; line 0 is the file as a whole."""
    unit = "row" if file.endswith((".parquet", ".arrow")) else "line"
    return f"{file}, {unit} {line}" if line else file


@dataclass(frozen=True)
class Problem:
    """A line that cannot be accepted; line 0 is the file as a whole."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{place(self.file, self.line)}: {self.reason}"


@dataclass
class Problems:
    """The first problems; `len` counts all of them."""

    kept: list[Problem] = field(default_factory=list)
    total: int = 0

    def add(self, file: str, line: int, reason: str) -> None:
        self.total += 1
        if len(self.kept) < MAX_PROBLEMS:
            shown = reason if len(reason) <= MAX_REASON else f"{reason[:MAX_REASON]}…"
            self.kept.append(Problem(file, line, printable(shown)))

    def __iter__(self) -> Iterator[Problem]:
        return iter(self.kept)

    def __len__(self) -> int:
        return self.total


@dataclass(frozen=True, slots=True)
class Located:
    """A record and its position."""

    record: Record
    file: str
    line: int
    source: str


@dataclass
class FileContent:
    """The content of a file.

    ignored: fields that the format does not read, with the number of lines that have them. told: notes on what may
    surprise people, with the number of lines they apply to and the first of these.
    """

    name: str
    format: str
    split: str | None = None
    lines: int = 0
    records: list[Located] = field(default_factory=list)
    problems: Problems = field(default_factory=Problems)
    ignored: Counter[str] = field(default_factory=Counter)
    told: dict[str, tuple[int, int]] = field(default_factory=dict)

    def tell(self, what: str, line: int) -> None:
        what = printable(what)
        what = what if what in self.told or len(self.told) < MAX_NAMES else "More of this kind was left out"
        n, first = self.told.get(what, (0, line))
        self.told[what] = n + 1, first

    def ignore(self, names: set[str]) -> None:
        for name in names:
            name = printable(name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}…")
            self.ignored[name if name in self.ignored or len(self.ignored) < MAX_NAMES else "(others)"] += 1


@dataclass(frozen=True)
class ImportFile:
    """A file to read, with its name for people (an upload's path is temporary).

    folder: the name of the folder that was searched; empty if the file itself was given.
    """

    path: Path
    name: str
    folder: str = ""

    @property
    def source(self) -> str:
        """The default source: the name without extensions, or the folder's name if the data set has one
        file per split."""
        if self.folder and _SPLIT.search(self.name):
            return self.folder
        stem = self.name.removesuffix(".gz")
        return next((stem.removesuffix(end) for end in ENDINGS if stem.endswith(end)), stem) or self.name

    @property
    def split(self) -> str | None:
        """The split that the file's name implies: test and validation files are held out."""
        found = _SPLIT.findall(self.name.lower())
        return None if not found or found[-1] == "train" else "heldout"


def find_files(paths: list[Path]) -> list[ImportFile]:
    """Return the files to import: each path itself, or all data files in a folder and below it.

    Raises:
        InvalidInput: there is no such file, or a folder has no data files.
    """
    found = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if _is_data(file.relative_to(path)) and file.is_file())
            if not inside:
                raise InvalidInput(f"The folder {path} holds no {', '.join(ENDINGS)} file.")
            found += [ImportFile(file, file.relative_to(path).as_posix(), path.resolve().name) for file in inside]
        elif path.is_file():
            found.append(ImportFile(path, path.name))
        else:
            raise InvalidInput(f"There is no file {path}.", "Check the path.")
    return found


def _is_data(path: Path) -> bool:
    hidden = any(part.startswith((".", "_")) for part in path.parts)
    return not hidden and path.name not in _NOT_DATA and path.name.removesuffix(".gz").endswith(ENDINGS)


def read(
    file: ImportFile, format_: str | None, source: str | None, progress: Progress, bounds: Bounds | None = None
) -> FileContent:
    """Read a whole file. A bad line becomes a problem in the result, not an error.

    Args:
        format_: one of FORMATS; None: detected from the keys of the first line that is an object.
        source: name for labelers and responses that have none; None: the file's name.
        bounds: what may be read, of all files together.

    Raises:
        InvalidInput: the file cannot be read, is empty, or its format is not known.
    """
    source = one_line(source or file.source)
    content = FileContent(file.name, format_ or "", file.split)
    found = rows(file.path, file.name, bounds or Bounds(), lambda n, of: progress(f"reading {file.name}", n, of))
    parse = parser(format_, source, guessed=False) if format_ else None
    for number, values in found:
        if values is None:
            continue
        content.lines += 1
        try:
            if isinstance(values, ValueError):
                raise values
            check_fields(values)
            if parse is None:
                content.format = _detect(file.name, number, values)
                parse = parser(content.format, source, guessed=True)
            records, told = parse(values)
        except ValueError as error:
            content.problems.add(file.name, number, reason_of(error))
            continue
        content.ignore(FORMATS[content.format].line.ignored(values))
        content.records += [Located(record, file.name, number, source) for record in records]
        for what in told:
            content.tell(what, number)
    if not content.lines:
        raise InvalidInput(f"{file.name} holds no lines.", "Choose a file with one JSON object on each line.")
    if not content.format:
        raise InvalidInput(f"{next(iter(content.problems))}.", _formats())
    _compare_rated(content)
    return content


def _detect(name: str, number: int, values: dict[str, object]) -> str:
    if found := detect(values):
        return found
    has = printable(", ".join(sorted(values)[:20])[:MAX_REASON]) or "(none)"
    message = f"{place(name, number)}: has the fields {has}, which fit no known format."
    raise InvalidInput(message, _formats())


def _formats() -> str:
    return f"Formats are: {'; '.join(f'{name} ({format_.about})' for name, format_ in FORMATS.items())}."


def _compare_rated(content: FileContent) -> None:
    """Replace rated responses by pairs: each response with each other one to the same prompt by the same labeler."""
    groups: dict[tuple[str, object], list[tuple[Located, RatedRecord]]] = {}
    others = []
    for located in content.records:
        if isinstance(located.record, RatedRecord):
            key = (located.record.prompt.digest, located.record.labeler)
            groups.setdefault(key, []).append((located, located.record))
        else:
            others.append(located)
    for group in groups.values():
        located, first = group[0]
        rated: list[Rated] = [record.response for _, record in group]
        if len({each.text for each in rated}) < 2:
            content.tell(
                "The only rated response to its prompt, so there is nothing to compare it with; it was left out",
                located.line,
            )
            continue
        try:
            pairs = ranked_pairs(first.prompt, rated, first.labeler)
        except ValueError as error:
            content.problems.add(located.file, located.line, str(error))
            continue
        others += [Located(pair, located.file, located.line, located.source) for pair in pairs]
    content.records = others


def reason_of(error: ValueError) -> str:
    """Return the text of an error: our own, or pydantic's by field."""
    if isinstance(error, UnicodeEncodeError):
        return HALF_CHARACTER
    if not isinstance(error, ValidationError):
        return str(error)
    reasons = []
    for detail in error.errors(include_url=False, include_input=False)[:3]:
        where = ".".join(str(part)[:MAX_NAME] for part in detail["loc"])
        said = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "missing":
            reasons.append(f"has no {'prompt or messages' if where == 'messages' else where}")
        else:
            reasons.append(f"{where}: {said}" if where else said)
    return "; ".join(reasons)

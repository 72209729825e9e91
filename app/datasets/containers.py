"""Reading rows from JSONL, JSON lists, CSV, Parquet and Arrow files; text files may be gzipped.

The kind is detected from a file's first bytes (for CSV, from its name), so a wrong file extension does no harm. Formats
that cannot be read are named in the error. Memory is bounded whatever a file contains: by `Bounds`, and by the limits
below.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from pydantic_core import from_json

from app.datasets import tables
from app.errors import InvalidInput

# Longer than any conversation that fits a model; a file without line breaks must not fill the memory.
MAX_LINE = 16 << 20
# A list is one JSON value, so its text is read as a whole.
MAX_JSON = 256 << 20
MAX_FIELDS = 1000
MAX_ENTRIES = 10_000  # in a list or object within a field

_NOT_SPACE = re.compile(r"\S")
_TOO_LONG = f"is longer than {MAX_LINE >> 20} MB, so it was not read"
_OTHERS = {
    b"PK\x03\x04": "a ZIP archive or an Excel workbook: unpack it, or save the sheet as CSV (UTF-8)",
    b"\x28\xb5\x2f\xfd": "compressed with Zstandard: unpack it, or compress it with gzip",
    b"BZh": "compressed with bzip2: unpack it, or compress it with gzip",
    b"\xfd7zXZ": "compressed with xz: unpack it, or compress it with gzip",
    b"\xff\xfe": "UTF-16 text: save it as UTF-8",
    b"\xfe\xff": "UTF-16 text: save it as UTF-8",
    b"\x00\x00\xfe\xff": "UTF-32 text: save it as UTF-8",
    b"%PDF": "a PDF",
    b"\x89HDF": "an HDF5 file",
    b"SQLite format 3": "an SQLite database",
    b"\x1f\x8b": "compressed with gzip twice: unpack it once",
}
# A row's number, and its fields, or why it cannot be read, or None for a blank line.
Row = tuple[int, dict[str, Any] | ValueError | None]
Progress = Callable[[int, int], None]


@dataclass
class Bounds:
    """What an import may still read, of all its files together: bytes after unpacking, and rows
    including blank lines."""

    bytes_left: int = 4 << 30
    rows_left: int = 5_000_000

    def spend(self, n_bytes: int = 0, n_rows: int = 0) -> None:
        self.bytes_left -= n_bytes
        self.rows_left -= n_rows
        if self.bytes_left < 0 or self.rows_left < 0:
            what = "data, unpacked," if self.bytes_left < 0 else "lines"
            raise InvalidInput(
                f"The files contain more {what} than one import can read.",
                "Split the files and import the parts one after the other.",
            )


class _Spending(io.RawIOBase):
    """A stream that counts what is read from it against the bounds."""

    def __init__(self, stream: BinaryIO, bounds: Bounds) -> None:
        self.stream, self.bounds = stream, bounds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.stream.read(len(buffer))
        self.bounds.spend(n_bytes=len(data))
        buffer[: len(data)] = data
        return len(data)


def rows(path: Path, name: str, bounds: Bounds, progress: Progress) -> Iterator[Row]:
    """Yield the rows of a file with their numbers: the line where a row begins, or in Parquet and Arrow the row.

    Args:
        name: the file's own name, because an upload's path is temporary.
        progress: called with (read, total), in bytes, or in rows for Parquet and Arrow.

    Raises:
        InvalidInput: the file as a whole cannot be read, or the bounds are exceeded.
    """
    total = path.stat().st_size
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            inner: Any = gzip.GzipFile(fileobj=raw) if packed else raw
            stream: io.BufferedReader = io.BufferedReader(_Spending(inner, bounds), 1 << 16)
            head = stream.peek(64)[:64]
            if not head.startswith((b"PAR1", b"ARROW1", b"\xff\xff\xff\xff")):
                _refuse_others(head, name)
                found = _with_progress(_text_rows(stream, name), raw, total, progress)
            elif packed:
                raise InvalidInput(
                    f"{name} is a Parquet or Arrow file compressed with gzip.", "Unpack it and import it again."
                )
            else:
                found = _table(path, name, bounds, progress)
            for row in found:
                bounds.spend(n_rows=1)
                yield row
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(name, str(error)) from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{name} {_not_utf8(error)}.", "Save it as UTF-8 and import it again.") from error
    progress(total, total)


def _refuse_others(head: bytes, name: str) -> None:
    kind = next((kind for mark, kind in _OTHERS.items() if head.startswith(mark)), None)
    if kind is None and len(head) > 3 and 0 in (head[0], head[1]) and head[0] != head[1]:
        kind = _OTHERS[b"\xff\xfe"]
    if kind is not None:
        what, _, advice = kind.partition(": ")
        raise InvalidInput(
            f"{name} is {what}, which cannot be imported.",
            f"{advice[:1].upper()}{advice[1:] or 'Export it as JSONL or CSV'} and import it again.",
        )


def _with_progress(found: Iterator[Row], raw: BinaryIO, total: int, progress: Progress) -> Iterator[Row]:
    for n, row in enumerate(found, 1):
        yield row
        if n % 500 == 0:
            progress(raw.tell(), total)


def _text_rows(stream: io.BufferedReader, name: str) -> Iterator[Row]:
    if stream.peek(3)[:3] == b"\xef\xbb\xbf":  # the byte-order mark that some editors write
        stream.read(3)
    if name.removesuffix(".gz").endswith((".csv", ".tsv")):
        return _csv_rows(stream, name)
    first = _next_byte(stream)
    if first == b"[":
        return _json_rows(stream, name, in_list=True)
    return _lines(stream, name)


def _next_byte(stream: io.BufferedReader) -> bytes:
    """Return the first byte of the buffer that is not a space. A file with more leading spaces than the buffer holds is
    not read as a list."""
    return stream.peek(1 << 16).lstrip()[:1]


# ---- JSON ------------------------------------------------------------------------------------------------------------


def _lines(stream: io.BufferedReader, name: str) -> Iterator[Row]:
    number = 0
    while line := stream.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            while not line.endswith(b"\n") and (line := stream.readline(MAX_LINE)):
                pass
            yield number, ValueError(_TOO_LONG)
        elif number == 1 and line.strip() == b"{":
            # An object over several lines; more objects may follow.
            yield from _json_rows(stream, name, in_list=False, read_before="{\n")
            return
        elif line.strip():
            try:
                value = from_json(line.rstrip())
            except ValueError as error:
                yield number, ValueError(_why_not_json(line, error))
            else:
                yield number, _object(value)
        else:
            yield number, None


def _object(value: object) -> dict[str, Any] | ValueError:
    return value if isinstance(value, dict) else ValueError("is not a JSON object")


def _why_not_json(line: bytes, error: ValueError) -> str:
    try:
        line.decode()
    except UnicodeDecodeError as undecodable:
        return _not_utf8(undecodable)
    # Only one line was parsed, so only the column is useful.
    return f"is not valid JSON: {str(error).replace('at line 1 column', 'at column')}"


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"is not UTF-8 text (byte {error.object[error.start]:#04x} at place {error.start + 1})"


def _json_rows(stream: io.BufferedReader, name: str, *, in_list: bool, read_before: str = "") -> Iterator[Row]:
    """Yield the objects of a JSON list, or consecutive JSON objects, each of which may span several lines."""
    text = read_before + io.TextIOWrapper(stream, encoding="utf-8", newline="").read(MAX_JSON + 1)
    if len(text) > MAX_JSON:
        raise InvalidInput(
            f"{name} is multi-line JSON of more than {MAX_JSON >> 20} MB.",
            "Write one object on each line (JSONL) and import it again.",
        )
    decoder = json.JSONDecoder()
    place, counted, line = _skip(text, 0, "[" if in_list else ""), 0, 1
    while place < len(text) and not (in_list and text[place] == "]"):
        line += text.count("\n", counted, place)
        counted = place
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            reason = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
            # It is unknown where the next object begins.
            yield line, ValueError(f"is not valid JSON, so it and the rest of the file were not read: {reason}")
            return
        yield line, _object(value)
        place = _skip(text, place, "," if in_list else "")
    if in_list and text[place:].strip() != "]":
        yield line, ValueError("the list does not end with the file; is the file complete?")


def _skip(text: str, place: int, mark: str) -> int:
    """Return the position after spaces and one mark."""
    found = _NOT_SPACE.search(text, place)
    place = found.start() if found else len(text)
    if mark and place < len(text) and text[place] == mark:
        return _skip(text, place + 1, "")
    return place


# ---- CSV -------------------------------------------------------------------------------------------------------------


def _csv_rows(stream: io.BufferedReader, name: str) -> Iterator[Row]:
    """Yield the rows below a header. Cells are texts; those with messages may hold them as JSON."""
    csv.field_size_limit(MAX_LINE)
    text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
    too_long: list[int] = []
    lines = _bounded_lines(text, too_long)
    header_line = next(lines, "")
    delimiter = max(",;\t", key=header_line.count)
    header = [cell.strip() for cell in next(csv.reader([header_line], delimiter=delimiter), [])]
    if len(header) > MAX_FIELDS:
        raise InvalidInput(
            f"{name} has {len(header):,} columns, more than {MAX_FIELDS:,}.", "Is its first line the header?"
        )
    if twice := {column for column, n in Counter(header).items() if column and n > 1}:
        raise InvalidInput(f"{name} has the column {min(twice)} twice.", "Rename one of them and import it again.")
    columns = [column or f"column {n}" for n, column in enumerate(header, 1)]
    reader = csv.reader(lines, delimiter=delimiter)
    begins = 2
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            yield begins, ValueError(f"is not valid CSV: {error}")
            begins = reader.line_num + 2
            continue
        while too_long:
            yield too_long.pop(0), ValueError(_TOO_LONG)
        if not cells:
            yield begins, None
        elif len(cells) != len(columns):
            yield begins, ValueError(f"has {len(cells)} cells, but the header {len(columns)}")
        else:
            yield begins, {column: _cell(column, cell) for column, cell in zip(columns, cells, strict=True)}
        begins = reader.line_num + 2
    for number in too_long:
        yield number, ValueError(_TOO_LONG)


def _bounded_lines(text: TextIO, too_long: list[int]) -> Iterator[str]:
    number = 0
    while line := text.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            while not line.endswith("\n") and (line := text.readline(MAX_LINE)):
                pass
            too_long.append(number)
            line = "\n"
        yield line


def _cell(column: str, text: str) -> object:
    """Return the cell's text; if it is JSON with messages or with choices by labeler, return the parsed value."""
    is_list = text.startswith("[{") and text.endswith("}]") and ('"role"' in text or '"from"' in text)
    if is_list or (column in ("choices", "tags") and text.startswith("{")):
        try:
            return from_json(text)
        except ValueError:
            return text
    return text


# ---- Parquet and Arrow -----------------------------------------------------------------------------------------------


def _table(path: Path, name: str, bounds: Bounds, progress: Progress) -> Iterator[Row]:
    number = total = 0
    row: dict[str, Any] | ValueError
    with tables.reading(path) as output:
        stream = io.BufferedReader(_Spending(output, bounds), 1 << 16)
        while line := stream.readline(MAX_LINE + 1):
            if line.startswith(tables.END):
                return
            if line.startswith(tables.ERROR):
                raise _unreadable(name, line[1:].decode().strip())
            if line.startswith(tables.TOTAL):
                total = int(line[1:])
                continue
            number += 1
            if len(line) > MAX_LINE:
                while not line.endswith(b"\n") and (line := stream.readline(MAX_LINE)):
                    pass
                yield number, ValueError(_TOO_LONG)
            else:
                try:
                    row = from_json(line)
                except ValueError as error:  # nested too deeply
                    row = error
                yield number, row
            if number % 500 == 0:
                progress(number, max(total, number))
    # It ended without the END line.
    raise _unreadable(name, "the file is damaged, or takes too much memory or time")


def _unreadable(name: str, why: str) -> InvalidInput:
    return InvalidInput(f"{name} cannot be read: {why}.", "Is the file complete? Copy or download it again.")


def check_fields(row: Mapping[str, object]) -> None:
    """Raise ValueError for a row with more fields, or more entries in a field, than any real data set has."""
    if len(row) > MAX_FIELDS:
        raise ValueError(f"has {len(row):,} fields, more than {MAX_FIELDS:,}")
    for name, value in row.items():
        if isinstance(value, (list, dict)) and len(value) > MAX_ENTRIES:
            raise ValueError(f"the field {name[:80]} holds {len(value):,} entries, more than {MAX_ENTRIES:,}")

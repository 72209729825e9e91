"""The containers of rows, errors for unreadable ones, and limits on reading."""

import csv
import gzip
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest

from app.datasets import containers, full_import, tables
from app.datasets.containers import Bounds, rows
from app.datasets.reading import MAX_PROBLEMS, FileContent, ImportFile, find_files, read
from app.datasets.records import PairRecord, PromptRecord
from app.errors import InvalidInput

ROWS: list[dict[str, Any]] = [
    {
        "prompt": [{"role": "user", "content": "Name a fish."}],
        "response_a": 'Cod,\n"fresh"',
        "response_b": " ",
        "preference": 2,
    },
    {"prompt": [{"role": "user", "content": "Größe?"}], "response_a": "", "response_b": "b", "preference": None},
]


@pytest.fixture
def read_bytes(tmp_path: Path) -> Callable[..., FileContent]:
    def read_(content: bytes, name: str = "x.jsonl", bounds: Bounds | None = None) -> FileContent:
        path = tmp_path / "upload"
        path.write_bytes(content)
        return read(ImportFile(path, name), None, None, lambda *_: None, bounds)

    return read_


def written(kind: str, path: Path) -> None:
    """Write ROWS to a file of this kind."""
    table = pa.Table.from_pylist(ROWS)
    if kind == "parquet":
        pq.write_table(table, path)
    elif kind == "arrow":  # as `save_to_disk` of HF datasets writes it
        with ipc.new_stream(str(path), table.schema) as stream:
            stream.write_table(table)
    elif kind == "list":
        path.write_text(json.dumps(ROWS, indent=2))
    elif kind == "objects":
        path.write_text("\n".join(json.dumps(row, indent=2) for row in ROWS))
    elif kind == "csv":
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, ROWS[0].keys(), delimiter=";")
            writer.writeheader()
            writer.writerows(row | {"prompt": json.dumps(row["prompt"])} for row in ROWS)
    else:
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode()))


@pytest.mark.parametrize("kind", ["gzip", "list", "objects", "csv", "parquet", "arrow"])
def test_the_same_rows_come_out_of_every_container(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{kind}"
    written(kind, path)
    content = read(ImportFile(path, path.name), None, None, lambda *_: None)
    assert not content.problems, list(content.problems)
    pairs = [located.record for located in content.records if isinstance(located.record, PairRecord)]
    assert [list(pair.prompt.messages) for pair in pairs] == [row["prompt"] for row in ROWS]
    assert [(pair.response_a, pair.response_b) for pair in pairs] == [('Cod,\n"fresh"', " "), ("", "b")]
    assert [[judgment.preference for judgment in pair.judgments] for pair in pairs] == [[2], []]


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ('{"prompt": "x"}'.encode("utf-16"), "x.jsonl", "is UTF-16 text"),
        ('{"prompt": "x"}'.encode("utf-16-le"), "x.jsonl", "is UTF-16 text"),
        ("prompt\nx\n".encode("utf-16"), "x.csv", "is UTF-16 text"),
        (b"prompt\nGr\xf6\xdfe\n", "x.csv", r"is not UTF-8 text \(byte 0xf6 at place"),
        (b'{"prompt": "Gr\xf6\xdfe"}', "x.jsonl", r"line 1: is not UTF-8 text \(byte 0xf6 at place 15\)"),
        (b"PK\x03\x04rest", "x.xlsx", "is a ZIP archive or an Excel workbook"),
        (b"\x28\xb5\x2f\xfdrest", "x.jsonl.zst", "is compressed with Zstandard"),
        (gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0), "x.gz", "is compressed with gzip twice"),
        (b"PAR1rest", "x.parquet", r"x\.parquet cannot be read"),
        (b"prompt,prompt\nx,y\n", "x.csv", "has the column prompt twice"),
        # Looking for duplicate names used to take minutes.
        (b",".join(b"c%d" % n for n in range(300_000)), "x.csv", "has 300,000 columns, more than 1,000"),
    ],
)
def test_what_cannot_be_read_is_named(
    read_bytes: Callable[..., FileContent], content: bytes, name: str, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message) as refused:
        read_bytes(content, name)
    assert refused.value.advice


@pytest.mark.parametrize(
    ("content", "name", "lines"),
    [
        (b'{"prompt": "a"}\n{"prompt": "%s"}\n{"prompt": "b"}\n', "x.jsonl", [2]),
        (b'prompt\na\n%s\nb\n', "x.csv", [3]),
    ],
)  # fmt: skip
def test_a_line_that_is_too_long_is_skipped_and_listed(
    read_bytes: Callable[..., FileContent], content: bytes, name: str, lines: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "MAX_LINE", 1000)
    found = read_bytes(content % (b"x" * 5000), name)
    assert [problem.line for problem in found.problems] == lines
    assert "is longer than" in found.problems.kept[0].reason
    prompts = [located.record for located in found.records if isinstance(located.record, PromptRecord)]
    assert [record.messages[0]["content"] for record in prompts] == ["a", "b"]


def test_damaged_tables_are_refused_and_crash_nothing(tmp_path: Path) -> None:
    """Readers trust Arrow's offsets, so such a file used to crash the process."""
    good, damaged = tmp_path / "good", tmp_path / "damaged.arrow"
    written("arrow", good)
    content = good.read_bytes()
    refused = 0
    for place in range(0, len(content), 97):
        damaged.write_bytes(content[:place] + b"\xff" + content[place + 1 :])
        try:
            read(ImportFile(damaged, damaged.name), None, None, lambda *_: None)
        except InvalidInput:
            refused += 1
    assert refused > 2


def test_rows_and_lists_that_are_broken_are_named_with_their_place(read_bytes: Callable[..., FileContent]) -> None:
    found = read_bytes(b'[\n{"prompt": "a"},\n3,\n{"prompt": "b"},\n{"prompt": \n')
    assert [problem.line for problem in found.problems] == [3, 5]
    assert "the rest of the file were not read" in found.problems.kept[1].reason
    found = read_bytes(b"prompt,domain\na,b\na\n", "x.csv")
    assert [str(problem) for problem in found.problems] == ["x.csv, line 3: has 1 cells, but the header 2"]
    found = read_bytes(b'[{"prompt": "\\ud800"}, {"prompt": "b"}]')
    assert "half of a character" in found.problems.kept[0].reason
    deep = b'[{"prompt": "a"}, ' + b"[" * 100_000 + b"]"
    assert "nested too deep" in read_bytes(deep).problems.kept[0].reason


# ---- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("filler", [b"\0", b"\n", b" ", b"x\n"])
def test_a_gzip_of_nothing_is_given_up_when_the_bounds_are_reached(
    read_bytes: Callable[..., FileContent], filler: bytes
) -> None:
    bomb = gzip.compress(filler * (8 << 20), 1)
    bounds = Bounds(bytes_left=4 << 20, rows_left=100_000)
    with pytest.raises(InvalidInput, match="than one import can read"):
        read_bytes(bomb, bounds=bounds)
    # At most one buffer beyond the limit was unpacked.
    assert bounds.bytes_left > -(1 << 17)
    assert bounds.rows_left >= -1


def test_the_bounds_are_of_all_files_together(read_bytes: Callable[..., FileContent]) -> None:
    bounds = Bounds(rows_left=3)
    read_bytes(b'{"prompt": "a"}\n{"prompt": "b"}\n', bounds=bounds)
    with pytest.raises(InvalidInput, match="more lines than one import can read"):
        read_bytes(b'{"prompt": "a"}\n{"prompt": "b"}\n', bounds=bounds)


def test_parquet_is_bounded_by_what_it_unpacks_to(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"prompt": ["x" * 10_000] * 2000}), path)  # 20 MB in a few KB
    assert path.stat().st_size < 100_000
    with pytest.raises(InvalidInput, match="more data, unpacked, than one import can read"):
        read(ImportFile(path, path.name), None, None, lambda *_: None, Bounds(bytes_left=1 << 20))


def test_a_table_that_unpacks_to_more_than_the_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dictionary contains one long text; as rows, 64 copies are in memory at once."""
    path = tmp_path / "x.parquet"
    once = pa.DictionaryArray.from_arrays(pa.array([0] * 64, pa.int32()), pa.array(["x" * (20 << 20)]))
    table = pa.table({"prompt": once})
    with pq.ParquetWriter(
        path, table.schema, compression="zstd", dictionary_pagesize_limit=1 << 30, store_schema=False
    ) as writer:
        writer.write_table(table)
    assert path.stat().st_size < 10_000
    monkeypatch.setattr(tables, "MEMORY", 600 << 20)
    bounds = Bounds()
    with pytest.raises(InvalidInput, match="takes too much memory"):
        read(ImportFile(path, path.name), None, None, lambda *_: None, bounds)
    assert bounds.rows_left == Bounds().rows_left


def test_what_a_full_export_is_looked_for_in_is_bounded(tmp_path: Path) -> None:
    """Each file used to be unpacked up to 4 GB before anything else checked it."""
    files = [ImportFile(tmp_path / str(n), f"{n}.jsonl") for n in range(3)]
    for file in files:
        file.path.write_bytes(gzip.compress(b"\0" * (8 << 20), 1))
    with pytest.raises(InvalidInput, match="more data, unpacked, than one import can read"):
        full_import.only(files, Bounds(bytes_left=20 << 20))


def test_what_is_no_text_in_a_table_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    cells = {"prompt": [b"caf\xc3\xa9", b"caf\xe9"], "image": [{"bytes": b"\xff"}] * 2, "weight": [float("nan"), 1.5]}
    pq.write_table(pa.table(cells), path)
    (_, first), (_, second) = rows(path, path.name, Bounds(), lambda *_: None)
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    assert (first["prompt"], first["image"]["bytes"]) == ("café", {"bytes": 1})
    assert math.isnan(first["weight"])
    assert not isinstance(second["prompt"], str)


def test_spaces_between_objects_cost_next_to_nothing(read_bytes: Callable[..., FileContent]) -> None:
    """30 MB of them used to block a thread for 17 s."""
    content = b'[{"prompt": "a"},' + b" " * (20 << 20) + b'{"prompt": "b"}]'
    began = time.process_time()
    assert read_bytes(content).lines == 2
    assert time.process_time() - began < 1.5


def test_fields_and_problems_are_bounded(read_bytes: Callable[..., FileContent]) -> None:
    many = json.dumps({"prompt": "a"} | {f"field {n} {'x' * 500}": n for n in range(900)})
    found = read_bytes("\n".join([many, json.dumps({str(n): n for n in range(200_000)})]).encode())
    assert len(found.ignored) <= 101
    assert max(map(len, found.ignored)) < 100
    assert [problem.reason for problem in found.problems] == ["has 200,000 fields, more than 1,000"]
    found = read_bytes(
        json.dumps({"prompt": "a", "choices": dict.fromkeys(map(str, range(10_001)), "C")}).encode()
        + b'\n{"prompt": "b"}'
    )
    assert "the field choices holds 10,001 entries" in found.problems.kept[0].reason
    found = read_bytes(b'{"prompt": "a"}\n' + b'{"prompt": 3}\n' * 1500)
    assert (len(found.problems), len(found.problems.kept)) == (1500, MAX_PROBLEMS)
    long = read_bytes(b'{"prompt": "a"}\n' + json.dumps({"prompt": [{"role": "x" * 99_999, "content": ""}]}).encode())
    assert len(long.problems.kept[0].reason) < 600


# ---- folders and splits ----------------------------------------------------------------------------------------------


def test_folders_of_hf_datasets(tmp_path: Path) -> None:
    for name in ("train/data-00000-of-00001.arrow", "test/data-00000-of-00001.arrow", "data/validation-0.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        written(name.rpartition(".")[2], tmp_path / name)
    for name in ("dataset_dict.json", "train/state.json", "train/dataset_info.json", ".cache.json", "README.md"):
        (tmp_path / name).write_text("{}")
    found = find_files([tmp_path])
    assert {file.name: file.split for file in found} == {
        "data/validation-0.parquet": "heldout",
        "test/data-00000-of-00001.arrow": "heldout",
        "train/data-00000-of-00001.arrow": None,
    }
    assert {file.source for file in found} == {tmp_path.name}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("test.jsonl", "heldout"),
        ("train.jsonl.gz", None),
        ("test_prefs-00000-of-00001.parquet", "heldout"),
        ("my-dev.csv", "heldout"),
        ("latest.jsonl", None),
        ("contest.jsonl", None),
    ],
)
def test_a_files_name_says_its_split(name: str, split: str | None) -> None:
    assert ImportFile(Path(name), name).split == split

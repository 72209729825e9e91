"""Reading a Parquet or Arrow file in a separate process: `python -m app.datasets.tables FILE` prints its rows as JSON.

A few kilobytes of Parquet can unpack to any size, and a single value to gigabytes. Arrow's readers also trust the
offsets in a file. Here only this process suffers, not the service: its memory is bounded, and it may crash.
"""

import contextlib
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from pydantic_core import to_json

MEMORY = 2 << 30  # bytes of address space
CPU_SECONDS = 600
ROWS_AT_ONCE = 64
# First byte of an output line: the number of rows, a row, why the file cannot be read, or the end.
TOTAL, ROW, ERROR, END = b"#", b"{", b"!", b"."

_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")


@contextlib.contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """Yield the output of a process that reads the file; it ends with the block. It has none of the
    service's secrets."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    child = subprocess.Popen(
        [sys.executable, "-m", __name__, str(path.absolute()), str(MEMORY)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        cwd=Path(__file__).resolve().parents[2],
        # The system allocator returns freed memory, and reserves none.
        env=kept | {"ARROW_DEFAULT_MEMORY_POOL": "system", "OMP_NUM_THREADS": "1"},
    )
    assert child.stdout is not None
    try:
        yield cast(BinaryIO, child.stdout)
    finally:
        child.kill()
        child.stdout.close()
        child.wait()


# ---- in the process --------------------------------------------------------------------------------------------------


def _print(path: str, out: BinaryIO) -> None:
    import pyarrow as pa  # here, because it takes long to load and the service itself does not need it
    import pyarrow.ipc as ipc
    import pyarrow.parquet as pq

    with open(path, "rb") as file:
        head = file.read(6)
    if head.startswith(b"PAR1"):
        with pq.ParquetFile(path) as table:
            out.write(b"%s%d\n" % (TOTAL, table.metadata.num_rows))
            for batch in table.iter_batches(ROWS_AT_ONCE, use_threads=False):
                _print_rows(batch, out)
        return
    opened = ipc.open_file if head == b"ARROW1" else ipc.open_stream
    with pa.OSFile(path) as source:
        reader = opened(source)
        parts = (reader.get_batch(n) for n in range(reader.num_record_batches)) if head == b"ARROW1" else reader
        for part in parts:
            part.validate(full=True)
            for n in range(0, len(part), ROWS_AT_ONCE):
                _print_rows(part.slice(n, ROWS_AT_ONCE), out)


def _print_rows(batch: Any, out: BinaryIO) -> None:
    for row in batch.to_pylist():
        try:
            line = to_json(row, inf_nan_mode="constants")
        except ValueError:
            line = to_json(_told(row), inf_nan_mode="constants")
        out.write(line + b"\n")


def _told(value: Any) -> Any:
    """Return the value with bytes that are not text replaced by objects, which no text field accepts."""
    if isinstance(value, dict):
        return {name: _told(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_told(each) for each in value]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"bytes": len(value)}
    return value


if __name__ == "__main__":
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]),) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    output = os.fdopen(1, "wb", 1 << 16)
    try:
        _print(sys.argv[1], output)
    except MemoryError:
        output.write(ERROR + b"it takes too much memory\n")
    except Exception as error:  # noqa: BLE001 - whatever is wrong with the file
        output.write(ERROR + " ".join(str(error).split())[:300].encode(errors="replace") + b"\n")
    else:
        output.write(END + b"\n")
    output.flush()

"""Temporary folders for a request's files: uploads to import, exports to send.

A request removes its own folder. Folders of a killed process are removed when the service next starts.
"""

import contextlib
import os
import shutil
import stat
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

from app.errors import Unavailable

PREFIX = "prefloop-files-"
LEFT_BEHIND = 24 * 3600  # seconds; no request takes that long
# Files that are written at the same time: each holds a thread and a connection, which labelers need too.
MADE_AT_ONCE = 4
# Files that exist at the same time: slow downloads keep theirs on the disk.
MOST_FILES = 20
_made, _there = threading.Semaphore(MADE_AT_ONCE), threading.Semaphore(MOST_FILES)


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """Yield a new folder that only this user can read."""
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as path:
        yield Path(path)


def download(name: str, media_type: str, write: Callable[[Path], object]) -> FileResponse:
    """Write a whole file to disk and then send it, so that an error never sends half a file.

    Raises:
        Unavailable: too many files are being written or sent already.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_place(_there))
        path = stack.enter_context(folder()) / name
        with _place(_made):
            write(path)
        kept_until_sent = stack.pop_all()
    background = BackgroundTask(kept_until_sent.close)
    response = FileResponse(path, filename=name, media_type=media_type, background=background)
    weakref.finalize(response, kept_until_sent.close)  # in case it is never sent: the commit may fail after the route
    return response


@contextlib.contextmanager
def _place(places: threading.Semaphore) -> Iterator[None]:
    if not places.acquire(blocking=False):
        raise Unavailable("Many people are downloading files right now.", "Try again in a minute.")
    try:
        yield
    finally:
        places.release()


def remove_left_behind() -> None:
    """Remove old folders of this user. Other users' files with such names stay."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            found = path.lstat()
            is_own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
            if is_own and found.st_mtime < time.time() - LEFT_BEHIND:
                shutil.rmtree(path)

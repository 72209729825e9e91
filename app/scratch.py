"""Folders of a request's files: uploads to import, exports to send.

A request removes its own folder. The folders of a process that was killed are removed when the service next starts.
"""

import contextlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

PREFIX = "prefloop-files-"
LEFT_BEHIND = 24 * 3600  # seconds; no request takes so long


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A new folder, which only this user can read."""
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as path:
        yield Path(path)


def download(name: str, media_type: str, write: Callable[[Path], object]) -> FileResponse:
    """A file that is made whole on the disk and then sent, so that an error is never half a file."""
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(folder()) / name
        write(path)
        kept_until_sent = stack.pop_all()
    background = BackgroundTask(kept_until_sent.close)
    return FileResponse(path, filename=name, media_type=media_type, background=background)


def remove_left_behind() -> None:
    """Removes old folders of this user; whoever else has put something under such a name keeps it."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            found = path.lstat()
            is_own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
            if is_own and found.st_mtime < time.time() - LEFT_BEHIND:
                shutil.rmtree(path)

"""Folders of a request's files: uploads to import, exports to send.

A request removes its own folder. The folders of a process that was killed are removed when the service next starts.
"""

import contextlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PREFIX = "prefloop-files-"
LEFT_BEHIND = 24 * 3600  # seconds; no request takes so long


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A new folder, which only this user can read."""
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as path:
        yield Path(path)


def remove_left_behind() -> None:
    """Removes old folders of this user; whoever else has put something under such a name keeps it."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            found = path.lstat()
            is_own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
            if is_own and found.st_mtime < time.time() - LEFT_BEHIND:
                shutil.rmtree(path)

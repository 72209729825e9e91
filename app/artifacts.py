"""The artifact store: models, snapshots and other files a run reads or leaves behind, under one folder.

Everything is written to `.staging/` on the same file system and renamed into place, so a reader sees a whole artifact
or none, also after SIGKILL or a full disk. Several machines share a store by mounting the same folder.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from app.errors import NotFound, StorageFull

_CHUNK = 1 << 20


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    sha = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            sha.update(chunk)
    return sha.hexdigest()


def digest_folder(folder: Path, leave_out: Collection[str] = ()) -> str:
    """SHA-256 over the sorted relative names and contents of a folder's files, those named left out, in hex."""
    sha = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in leave_out):
        sha.update(f"{path.relative_to(folder).as_posix()}\0{digest_file(path)}\n".encode())
    return sha.hexdigest()


class ArtifactStore:
    """Artifacts by location: a path relative to `root`, such as `models/run-12` or `snapshots/ab12.jsonl.gz`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def resolve(self, location: str) -> Path:
        """The path of an existing artifact. An absolute location stands for itself (used without a store).

        Raises:
            NotFound: nothing is stored there, or the location points outside the store.
        """
        path = Path(location) if os.path.isabs(location) else self.root / location
        if not os.path.isabs(location) and not path.resolve().is_relative_to(self.root.resolve()):
            raise NotFound(f"{location} points outside the artifact store.")
        if not path.exists():
            raise NotFound(
                f"The artifact {location} is not in {self.root}.",
                "Was the folder moved, or does this machine use another PREFLOOP_HOME?",
            )
        return path

    def exists(self, location: str) -> bool:
        return (self.root / location).exists()

    @contextlib.contextmanager
    def folder(self, location: str) -> Iterator[Path]:
        """Yields an empty staging folder that becomes `location` when the block ends without an error.

        An existing artifact at `location` is replaced: the only writer of a location is the run it is named after.

        Raises:
            StorageFull: the disk is full; nothing of the new artifact remains and an old one is left as it was.
        """
        target = self.root / location
        staging = self.root / ".staging"
        with _named_storage_errors(target):
            staging.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(dir=staging, prefix=f"{target.name}-"))
            old = temporary.with_name(f"{temporary.name}.old")
            try:
                yield temporary
                target.parent.mkdir(parents=True, exist_ok=True)
                if target.exists():
                    os.rename(target, old)
                os.rename(temporary, target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
                shutil.rmtree(old, ignore_errors=True)

    @contextlib.contextmanager
    def file(self, location: str) -> Iterator[Path]:
        """Yields the path of a staging file that becomes `location` when the block ends without an error.

        Raises:
            StorageFull: as for `folder`.
        """
        target = self.root / location
        staging = self.root / ".staging"
        with _named_storage_errors(target):
            staging.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(dir=staging)) / target.name
            try:
                yield temporary
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(temporary, target)
            finally:
                shutil.rmtree(temporary.parent, ignore_errors=True)

    def sweep(self) -> None:
        """Removes what writers killed half-way left in staging. Call only while no writer runs."""
        shutil.rmtree(self.root / ".staging", ignore_errors=True)


@contextlib.contextmanager
def _named_storage_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # Libraries wrap ENOSPC in errors of their own (safetensors: SafetensorError), hence the look at the text.
        code = error.errno if isinstance(error, OSError) else None
        if code in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
            raise StorageFull(
                f"There was no room left on the disk while {target.name} was written.",
                "Free some space in the artifact folder, then retry: nothing that was saved before is lost.",
            ) from error
        raise

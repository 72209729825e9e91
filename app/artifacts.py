"""The artifact store: models, snapshots and other files a run reads or leaves behind, under one folder.

Everything is written to `.staging/` on the same file system and renamed into place, so a reader sees a whole artifact
or none, also after SIGKILL or a full disk. Several machines share a store by mounting the same folder.
"""

import contextlib
import errno
import gzip
import hashlib
import os
import re
import shutil
import tempfile
import time
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from uuid import uuid4

from app.errors import InvalidInput, NotFound, StorageFull

_CHUNK = 1 << 20
_RESTORE = "Restore it from a backup of the artifacts, or start a new round."


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
                "Was it moved, or is this another artifact folder (PREFLOOP_HOME; --store of trainer.cli)?",
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
            # By mkdir, so that the umask decides who may read it: a folder of tempfile's nobody else could.
            temporary = staging / f"{target.name}-{uuid4().hex}"
            temporary.mkdir(parents=True)
            old = temporary.with_name(f"{temporary.name}.old")
            try:
                yield temporary
                readable = temporary.stat().st_mode & 0o666
                for file in temporary.rglob("*"):
                    mode = file.stat().st_mode
                    if file.is_file() and mode | readable != mode:  # safetensors makes files for their owner alone
                        file.chmod(mode | readable)
                target.parent.mkdir(parents=True, exist_ok=True)
                if target.exists():
                    os.rename(target, old)
                try:
                    os.rename(temporary, target)
                except OSError:
                    if old.exists():
                        os.rename(old, target)
                    raise
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

    def size(self, location: str) -> int:
        """Bytes of an artifact's files; 0 where there is none, or it is just going."""
        total = 0
        path = self.root / location
        for file in (path, *path.rglob("*")):
            with contextlib.suppress(FileNotFoundError):
                total += file.stat().st_size if file.is_file() else 0
        return total

    def remove(self, location: str) -> None:
        """Removes an artifact, file or folder; nothing happens where there is none."""
        path = self.root / location
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def sweep(self, older_than_seconds: float = 0.0) -> None:
        """Removes what writers killed half-way left in staging.

        Without an age call it only while no writer runs; a writer that needs longer than the age would lose its work.
        """
        for entry in (self.root / ".staging").glob("*"):
            with contextlib.suppress(FileNotFoundError):  # its writer has just finished
                if time.time() - entry.stat().st_mtime >= older_than_seconds:
                    shutil.rmtree(entry, ignore_errors=True)


def read_content(path: Path) -> bytes:
    """The bytes of a snapshot or another file named after its content, decompressed where it ends in `.gz`.

    Files whose name is not a digest are read as they are.

    Raises:
        InvalidInput: the content is not what the name says: it was damaged, or changed by hand.
    """
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise InvalidInput(f"{path.name} is not a whole gzip file: {error}.", _RESTORE) from error
    name = path.name.partition(".")[0]
    if re.fullmatch(r"[0-9a-f]{32}", name) and not hashlib.sha256(content).hexdigest().startswith(name):
        raise InvalidInput(f"{path.name} is not what was written: its digest differs.", _RESTORE)
    return content


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

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
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from app.errors import InvalidInput, NotFound, StorageFull

_CHUNK = 1 << 20
_OWNER = 0o700  # of a file's mode, what its owner may do
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
    """Artifacts by location: a path relative to `root`, such as `models/run-12` or `snapshots/ab12.jsonl.gz`.

    Only their owner can read them.

    Args:
        outside: folders below which absolute locations are read too; None: anywhere (whoever runs `trainer.cli` names
            files of their own).
    """

    def __init__(self, root: Path, outside: Sequence[Path] | None = None) -> None:
        self.root = root
        self.outside = outside

    def resolve(self, location: str) -> Path:
        """The path of an existing artifact.

        Raises:
            NotFound: nothing is there, or it may not be read. The error does not tell which: who names locations learns
                nothing about other files.
        """
        path = self.root / location  # an absolute location stands for itself
        try:
            found = self.allows(location) and path.exists()
        except (OSError, ValueError):  # a name that no file can have
            found = False
        if not found:
            raise NotFound(
                f"There is no artifact {location}.",
                "Was it moved, or is this another artifact folder (PREFLOOP_HOME; --store of trainer.cli)? "
                "Absolute paths must lie below PREFLOOP_MODEL_FOLDERS.",
            )
        return path

    def allows(self, location: str) -> bool:
        """Whether something at this location may be read, whether it is there or not."""
        if os.path.isabs(location) and self.outside is None:
            return True
        # Links are followed first; then whole names are compared, so that /data/models-old is not below /data/models.
        real, root = (self.root / location).resolve(), self.root.resolve()
        outside = self.outside if os.path.isabs(location) else None
        return root in real.parents or any(real.is_relative_to(folder.resolve()) for folder in outside or ())

    def run_of(self, location: str) -> int | None:
        """The run that made this location's artifact, whether or not it is still there; none if no run did."""
        real, root = (self.root / location).resolve(), self.root.resolve()
        inside = real.relative_to(root).parts if real.is_relative_to(root) else ()
        made = (re.fullmatch(r"run-([0-9]{1,18})", part) for part in inside)
        return next((int(found[1]) for found in made if found), None)

    def exists(self, location: str) -> bool:
        with contextlib.suppress(NotFound):
            return self.resolve(location).exists()
        return False

    @contextlib.contextmanager
    def folder(self, location: str) -> Iterator[Path]:
        """Yields an empty staging folder that becomes `location` when the block ends without an error.

        An existing artifact at `location` is replaced: the only writer of a location is the run it is named after.

        Raises:
            StorageFull: the disk is full; nothing of the new artifact remains and an old one is left as it was.
        """
        target = self.root / location
        staging = self.root / ".staging"
        with _named_storage_errors(target.name):
            _make(staging)
            temporary = Path(tempfile.mkdtemp(prefix=f"{target.name}-", dir=staging))
            old = temporary.with_name(f"{temporary.name}.old")
            try:
                yield temporary
                for path in temporary.rglob("*"):
                    if not path.is_symlink():
                        path.chmod(path.stat().st_mode & _OWNER)
                _make(target.parent)
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
        with self.named_file(Path(location).name, lambda: location) as path:
            yield path

    @contextlib.contextmanager
    def named_file(self, name: str, location: Callable[[], str]) -> Iterator[Path]:
        """As `file`, for a location that the content decides: it is asked for when the block ends.

        Args:
            name: of the staging file, and of the artifact in errors.
        """
        staging = self.root / ".staging"
        with _named_storage_errors(name):
            _make(staging)
            temporary = Path(tempfile.mkdtemp(dir=staging)) / name
            try:
                yield temporary
                temporary.chmod(temporary.stat().st_mode & _OWNER)
                target = self.root / location()
                _make(target.parent)
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


def _make(folder: Path) -> None:
    """Makes a folder for its owner alone, and those above it that are missing (which `mkdir` leaves to the umask)."""
    if not folder.exists():
        _make(folder.parent)
        folder.mkdir(mode=_OWNER, exist_ok=True)


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
def _named_storage_errors(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # Libraries wrap ENOSPC in errors of their own (safetensors: SafetensorError), hence the look at the text.
        code = error.errno if isinstance(error, OSError) else None
        if code in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
            raise StorageFull(
                f"There was no room left on the disk while {name} was written.",
                "Free some space in the artifact folder, then retry: nothing that was saved before is lost.",
            ) from error
        raise

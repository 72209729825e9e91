"""The artifact store: models, snapshots and other files that a run reads or writes, under one folder.

Everything is written to `.staging/` on the same file system and then renamed into place. So a reader sees a whole
artifact or none, even after SIGKILL or a full disk. Several machines share a store by mounting the same folder.
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
_OWNER = 0o700  # the owner's part of a file's mode
_RESTORE = "Restore it from a backup of the artifacts, or start a new round."


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    sha = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            sha.update(chunk)
    return sha.hexdigest()


def digest_folder(folder: Path, leave_out: Collection[str] = ()) -> str:
    """Return the SHA-256 over a folder's sorted relative file names and contents, in hex, without `leave_out`."""
    sha = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in leave_out):
        sha.update(f"{path.relative_to(folder).as_posix()}\0{digest_file(path)}\n".encode())
    return sha.hexdigest()


class ArtifactStore:
    """Artifacts by location: a path relative to `root`, such as `models/run-12` or `snapshots/ab12.jsonl.gz`.

    Only their owner can read them.

    Args:
        outside: folders below which absolute locations may be read too; None: anywhere, because users of `trainer.cli`
            name their own files.
    """

    def __init__(self, root: Path, outside: Sequence[Path] | None = None) -> None:
        self.root = root
        self.outside = outside

    def resolve(self, location: str) -> Path:
        """Return the path of an existing artifact.

        Raises:
            NotFound: nothing is there, or it may not be read. The error does not say which, so that nobody can probe
                for other files.
        """
        path = self.root / location  # an absolute location stays as it is
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
        """Tell whether an artifact at this location may be read, whether or not it exists."""
        if os.path.isabs(location) and self.outside is None:
            return True
        # Resolve links first, then compare whole names, so that /data/models-old is not below /data/models.
        real, root = (self.root / location).resolve(), self.root.resolve()
        outside = self.outside if os.path.isabs(location) else None
        return root in real.parents or any(real.is_relative_to(folder.resolve()) for folder in outside or ())

    def run_of(self, location: str) -> int | None:
        """Return the run that made this location's artifact, whether or not it still exists; None if no run did."""
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
        """Yield an empty staging folder that becomes `location` when the block ends without an error.

        An existing artifact at `location` is replaced. Only the run that a location is named after writes to it.

        Raises:
            StorageFull: the disk is full; nothing of the new artifact remains, and an old one stays as it was.
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
        """Yield the path of a staging file that becomes `location` when the block ends without an error.

        Raises:
            StorageFull: as for `folder`.
        """
        with self.named_file(Path(location).name, lambda: location) as path:
            yield path

    @contextlib.contextmanager
    def named_file(self, name: str, location: Callable[[], str]) -> Iterator[Path]:
        """Like `file`, for a location that depends on the content: `location` is called when the block ends.

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
        """Return the bytes of an artifact's files; 0 if there is none or it is just being removed."""
        total = 0
        path = self.root / location
        for file in (path, *path.rglob("*")):
            with contextlib.suppress(FileNotFoundError):
                total += file.stat().st_size if file.is_file() else 0
        return total

    def remove(self, location: str) -> None:
        """Remove an artifact, file or folder; does nothing if there is none."""
        path = self.root / location
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def sweep(self, older_than_seconds: float = 0.0) -> None:
        """Remove what killed writers left in staging.

        Without an age, call it only while no writer runs. A writer that takes longer than the age loses its work.
        """
        for entry in (self.root / ".staging").glob("*"):
            with contextlib.suppress(FileNotFoundError):  # its writer has just finished
                if time.time() - entry.stat().st_mtime >= older_than_seconds:
                    shutil.rmtree(entry, ignore_errors=True)


def _make(folder: Path) -> None:
    """Create a folder for its owner only, including missing parents, whose mode `mkdir` would leave to the umask."""
    if not folder.exists():
        _make(folder.parent)
        folder.mkdir(mode=_OWNER, exist_ok=True)


def read_content(path: Path) -> bytes:
    """Return the bytes of a snapshot or another file named after its content, decompressed if it ends in `.gz`.

    Files whose name is not a digest are read without a check.

    Raises:
        InvalidInput: the content does not match the name: it was damaged, or changed by hand.
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
        # Libraries wrap ENOSPC in their own errors (safetensors: SafetensorError), so the text is checked too.
        code = error.errno if isinstance(error, OSError) else None
        if code in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
            raise StorageFull(
                f"There was no room left on the disk while {name} was written.",
                "Free some space in the artifact folder, then retry: nothing that was saved before is lost.",
            ) from error
        raise

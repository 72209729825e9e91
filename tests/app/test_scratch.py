"""Files that a killed service left in the folder for temporary files."""

import gc
import os
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app import scratch
from app.errors import Unavailable


@pytest.fixture
def few_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files; two files may be made at once, and three may exist at once."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(scratch, "_made", threading.Semaphore(2))
    monkeypatch.setattr(scratch, "_there", threading.Semaphore(3))
    return tmp_path


def test_old_folders_of_killed_processes_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names = ["left", "in-use"]
    for name in names:
        (tmp_path / f"{scratch.PREFIX}{name}").mkdir()
        (tmp_path / f"{scratch.PREFIX}{name}" / "0").write_text("a prompt")
    (tmp_path / "others").mkdir()
    (tmp_path / f"{scratch.PREFIX}link").symlink_to(tmp_path / "others")
    long_ago = time.time() - 2 * scratch.LEFT_BEHIND
    for name in (f"{scratch.PREFIX}left", "others"):
        os.utime(tmp_path / name, (long_ago, long_ago))
    os.utime(tmp_path / f"{scratch.PREFIX}link", (long_ago, long_ago), follow_symlinks=False)
    scratch.remove_left_behind()
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{scratch.PREFIX}in-use",
        f"{scratch.PREFIX}link",
        "others",
    }


def test_a_folder_goes_with_its_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with scratch.folder() as folder:
        assert folder.stat().st_mode & 0o077 == 0
        (folder / "0").write_text("a prompt")
    assert list(tmp_path.iterdir()) == []


def write(path: Path) -> None:
    path.write_text("a prompt")


def test_few_files_are_made_at_once(few_places: Path) -> None:
    """Otherwise downloads use all threads of the service, and labelers wait for them."""
    begun, may_end = threading.Barrier(3, timeout=60), threading.Event()

    def slowly(path: Path) -> None:
        begun.wait()
        assert may_end.wait(60)
        write(path)

    with ThreadPoolExecutor(2) as pool:
        made = [pool.submit(scratch.download, "x", "text/plain", slowly) for _ in range(2)]
        begun.wait()
        with pytest.raises(Unavailable, match="Many people are downloading"):
            scratch.download("x", "text/plain", write)
        assert len(list(few_places.iterdir())) == 2
        may_end.set()
        assert [Path(each.result().path).read_text() for each in made] == ["a prompt"] * 2


def test_few_files_are_there_at_once(few_places: Path) -> None:
    """Otherwise slow readers fill the disk. A file is also removed if its commit failed and it is never sent."""
    sent = [scratch.download("x", "text/plain", write) for _ in range(3)]
    with pytest.raises(Unavailable):
        scratch.download("x", "text/plain", write)
    sent.pop()
    gc.collect()
    assert len(list(few_places.iterdir())) == 2
    assert scratch.download("x", "text/plain", write).path

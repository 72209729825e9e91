"""What a service that was killed left in the folder for temporary files."""

import os
import tempfile
import time
from pathlib import Path

import pytest

from app import scratch


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

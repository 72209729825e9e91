"""The artifact store's guarantees: a name matches its content, and sweeping spares files that are being written."""

import errno
import gzip
import os
import time
from pathlib import Path

import pytest

from app.artifacts import ArtifactStore, read_content
from app.errors import InvalidInput, NotFound, StorageFull
from app.rounds.snapshots import write_lines
from app.rows import PromptRow

ROW = PromptRow(id=1, messages=({"role": "user", "content": "Why?"},))


@pytest.mark.parametrize("compressed", [True, False])
def test_a_file_named_after_its_content_is_checked_when_it_is_read(tmp_path: Path, compressed: bool) -> None:
    store = ArtifactStore(tmp_path)
    path = store.resolve(write_lines(store, "prompts", [ROW], compressed=compressed)[1])
    assert read_content(path) == ROW.model_dump_json().encode() + b"\n"
    changed = read_content(path).replace(b"Why", b"How")
    path.write_bytes(gzip.compress(changed) if compressed else changed)
    with pytest.raises(InvalidInput, match="is not what was written"):
        read_content(path)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    path = store.resolve(write_lines(store, "prompts", [ROW] * 50, compressed=True)[1])
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InvalidInput, match="not a whole gzip file"):
        read_content(path)


def test_files_with_other_names_are_read_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text("{}\n")
    assert read_content(tmp_path / "mine.jsonl") == b"{}\n"


def test_sweeping_by_age_spares_what_is_being_written(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    old = tmp_path / ".staging" / "old"
    old.mkdir(parents=True)
    os.utime(old, (time.time() - 90_000,) * 2)
    with store.folder("models/new") as folder:
        (folder / "weights").write_text("1")
        store.sweep(older_than_seconds=86_400)
        assert not old.exists()
    assert (tmp_path / "models/new/weights").exists()
    (tmp_path / ".staging" / "left").mkdir()
    store.sweep()
    assert list((tmp_path / ".staging").iterdir()) == []


def test_only_their_owner_reads_artifacts(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "artifacts")
    before = os.umask(0)  # the umask must not decide
    try:
        with store.folder("models/1") as folder:
            (folder / "parts").mkdir()
            (folder / "parts" / "file").touch()
        with store.file("snapshots/1") as file:
            file.touch()
    finally:
        os.umask(before)
    found = [tmp_path / "artifacts", *(tmp_path / "artifacts").rglob("*")]
    assert len(found) == 8
    assert {path.name: path.stat().st_mode & 0o077 for path in found if path.stat().st_mode & 0o077} == {}


@pytest.fixture
def confined(tmp_path: Path) -> ArtifactStore:
    """A store that may read one folder outside, next to folders with similar names and links to other places."""
    for name in ("store/in", "store-old/in", "models/in", "models-old/in", "secret"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "store" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "models" / "link").symlink_to(tmp_path / "secret")
    return ArtifactStore(tmp_path / "store", [tmp_path / "models"])


def test_locations_lead_nowhere_else_and_errors_do_not_tell_what_is_there(
    confined: ArtifactStore, tmp_path: Path
) -> None:
    assert confined.resolve("in") == tmp_path / "store" / "in"
    assert confined.resolve(f"{tmp_path}/models/in") == tmp_path / "models" / "in"
    there = ["../store-old/in", "../models/in", "link", "in/../../secret", "", ".", "in/.."]
    there += [f"{tmp_path}/{name}" for name in ("store-old/in", "models-old/in", "models/link", "models/../secret", "")]
    missing = ["../none", "none", f"{tmp_path}/none", "a\0b", "x" * 300, "/etc/none"]
    told = set()
    for location in there + missing:
        with pytest.raises(NotFound) as refused:
            confined.resolve(location)
        assert not confined.exists(location)
        told.add(str(refused.value).replace(f"artifact {location}.", "artifact."))
    assert len(told) == 1
    assert str(tmp_path) not in told.pop()


def test_without_bounds_an_absolute_location_stands_for_itself(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    store = ArtifactStore(tmp_path / "store")
    assert store.resolve(f"{tmp_path}/mine") == tmp_path / "mine"
    with pytest.raises(NotFound):
        store.resolve("../mine")


def test_removing_takes_files_folders_and_nothing(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    with store.folder("a/folder") as folder:
        (folder / "x").write_text("x")
    with store.file("a/file") as file:
        file.write_text("x")
    for location in ("a/folder", "a/file", "a/none"):
        store.remove(location)
        assert not store.exists(location)


def test_a_disk_that_fills_up_at_the_last_moment_leaves_the_artifact_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, rename = ArtifactStore(tmp_path), os.rename
    with store.folder("models/1") as folder:
        (folder / "weights").write_text("old")

    def full(source: Path, target: Path) -> None:
        if target == tmp_path / "models/1" and not source.name.endswith(".old"):
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(StorageFull), store.folder("models/1") as folder:
        (folder / "weights").write_text("new")
    assert (tmp_path / "models/1/weights").read_text() == "old"
    assert not any((tmp_path / ".staging").iterdir())

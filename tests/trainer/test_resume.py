"""A run that is killed at any moment resumes from its last checkpoint and ends with exactly the same weights."""

import logging
import os
import random
import re
import resource
import shutil
import signal
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from app.artifacts import ArtifactStore, digest_folder
from app.specs import Optimiser
from tests.processes import context
from tests.trainer import jobs
from trainer.checkpoints import Checkpoints, random_states, set_random_states

pytestmark = pytest.mark.long

# Maximum checkpoints that an attempt may write before it is killed: about eight kills per job. Chains of other
# recipes write more.
MOST_STEPS = dict.fromkeys(jobs.KINDS, 3) | {"on_policy_dpo": 6, "best_of_n": 6}
LEAST_KILLS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jobs")
    jobs.prepare(folder)
    return folder


def start(kind: str, folder: Path, out: Path, *options: bool) -> ForkServerProcess:
    process = context().Process(target=jobs.run, args=(kind, folder, out, *options))
    process.start()
    return process


# KTO is DPO's recipe with another loss.
@pytest.mark.parametrize("kind", [kind for kind in jobs.KINDS if kind != "kto"])
def test_kills_change_no_bit(kind: str, folder: Path, tmp_path: Path) -> None:
    """Kills cover the run from loading to its end. Each comes a random number of checkpoints after the previous one,
    plus a random moment. So equal specs also give equal weights."""
    started = time.monotonic()
    start(kind, folder, tmp_path / "plain").join()
    seconds = time.monotonic() - started
    expected = digest_folder(tmp_path / "plain")

    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    kills = finished = 0
    out, steps = tmp_path / f"killed-{kind}", set[Path]()
    checkpoints = folder / "store" / jobs.CHECKPOINTS / out.name

    def written() -> set[Path]:
        # Unlike glob, walk does not fail if the run removes folders at the same time.
        found = {Path(place, name) for place, names, _ in os.walk(checkpoints) for name in names}
        return {path for path in found if re.match(r"step-|turn-|comparisons", path.name)}

    while not finished or kills < LEAST_KILLS:
        assert kills < 200, "the kills met a run that had not begun"
        before, wanted = written(), chance.randint(0, MOST_STEPS[kind])
        attempt = start(kind, folder, out, True)
        while attempt.is_alive() and len(written() - before) < wanted:
            attempt.join(0.01)
        steps |= written()
        attempt.join(chance.uniform(0, seconds / 8))  # kill it while it loads, or during the next step
        if attempt.is_alive():
            attempt.kill()
            kills += 1
        attempt.join()
        if attempt.exitcode == 0:
            finished += 1
            assert digest_folder(out) == expected
            assert not checkpoints.exists()
            shutil.rmtree(out)
        else:
            assert attempt.exitcode == -signal.SIGKILL
            if out.exists():  # killed between the move into place and the process's end: the output is complete
                assert digest_folder(out) == expected
                shutil.rmtree(out)
    assert len(steps) > 3


# ---- checkpoints alone -----------------------------------------------------------------------------------------------


def checkpoints_in(root: Path, learning_rate: float = 1e-3, keep: int = 2) -> Checkpoints:
    spec = Optimiser(learning_rate=learning_rate)
    return Checkpoints(ArtifactStore(root), "checkpoints/run-1", spec, every_seconds=0, keep=keep)


def save(checkpoints: Checkpoints, step: int) -> None:
    checkpoints.save(step, {"weights": torch.full((3,), float(step))}, {"step": step})


def names_in(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.glob("step-*"))


def test_the_newest_is_read_and_the_oldest_are_pruned(tmp_path: Path) -> None:
    checkpoints = checkpoints_in(tmp_path)
    assert checkpoints.load() is None
    for step in (1, 2, 3):
        save(checkpoints, step)
    assert names_in(checkpoints) == ["step-00000002", "step-00000003"]
    found = checkpoints.load()
    assert found is not None
    assert (found.step, found.state["step"], found.tensors["weights"].tolist()) == (3, 3, [3.0, 3.0, 3.0])


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "no digest"])
def test_a_damaged_one_is_named_and_the_one_before_is_taken(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = checkpoints_in(tmp_path)
    save(checkpoints, 1)
    save(checkpoints, 2)
    file = checkpoints.folder / "step-00000002" / "tensors.safetensors"
    content = file.read_bytes()
    match damage:
        case "flip":
            file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        case "cut":
            file.write_bytes(content[:-4])
        case "remove":
            file.unlink()
        case "no digest":
            (file.parent / "digest").unlink()
    with caplog.at_level(logging.WARNING):
        found = checkpoints.load()
    assert found is not None
    assert found.step == 1
    assert "step-00000002" in caplog.text


def test_one_that_somebody_else_put_there_is_not_taken(tmp_path: Path) -> None:
    """Anybody who can write to the folder can compute a digest."""

    def of(root: Path, run: str, key: bytes) -> Checkpoints:
        return Checkpoints(ArtifactStore(root), f"checkpoints/{run}", Optimiser(learning_rate=1e-3), 0, key=key)

    ours = of(tmp_path, "run-1", b"ours")
    save(ours, 1)
    for root, run, key in ((tmp_path / "theirs", "run-1", b"theirs"), (tmp_path, "run-2", b"ours")):
        foreign = of(root, run, key)  # forged, or from another run
        save(foreign, 2)
        shutil.copytree(foreign.folder / "step-00000002", ours.folder / "step-00000002")
        found = of(tmp_path, "run-1", b"ours").load()
        assert found is not None
        assert found.step == 1
        shutil.rmtree(ours.folder / "step-00000002")
    os.rename(ours.folder / "step-00000001", ours.folder / "step-00000009")  # an old one renamed as the newest
    assert of(tmp_path, "run-1", b"ours").load() is None


def test_those_of_another_specification_are_neither_taken_nor_in_the_way(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before, changed = checkpoints_in(tmp_path), checkpoints_in(tmp_path, learning_rate=2e-3)
    save(before, 8)
    save(before, 9)
    with caplog.at_level(logging.WARNING):
        assert changed.load() is None
    assert "another spec" in caplog.text
    save(changed, 1)
    found = changed.load()
    assert found is not None
    assert found.step == 1
    changed.remove()
    found = before.load()
    assert found is not None
    assert found.step == 9
    before.remove()
    assert list((tmp_path / "checkpoints").iterdir()) == []


class Killed(BaseException):
    pass


def test_a_kill_while_one_step_is_saved_again_leaves_one_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PPO saves twice at the same step: when a rollout is completed, and when the next rollout is sampled."""
    checkpoints = checkpoints_in(tmp_path, keep=1)
    save(checkpoints, 3)

    def rename_and_die(*paths: Path, rename: Any = os.rename) -> None:
        rename(*paths)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", rename_and_die)
        with pytest.raises(Killed):
            checkpoints.save(3, {}, {"rollout": 1})
    found = checkpoints_in(tmp_path).load()
    assert found is not None
    assert (found.step, found.state) == (3, {"rollout": 1})
    assert names_in(checkpoints) == ["step-00000003", "step-00000003+"]

    checkpoints.save(3, {}, {"rollout": 2})
    found = checkpoints.load()
    assert found is not None
    assert found.state == {"rollout": 2}
    assert names_in(checkpoints) == ["step-00000003++"]
    save(checkpoints, 4)
    assert names_in(checkpoints) == ["step-00000004"]


def test_a_damaged_one_further_on_does_not_drive_out_the_good_ones(tmp_path: Path) -> None:
    before = checkpoints_in(tmp_path)
    save(before, 4)
    save(before, 9)
    (before.folder / "step-00000009" / "tensors.safetensors").write_bytes(b"damaged")
    again = checkpoints_in(tmp_path, keep=1)
    found = again.load()
    assert found is not None
    assert found.step == 4
    save(again, 5)
    assert names_in(again) == ["step-00000005"]


def test_what_a_kill_left_half_written_goes_when_the_run_goes_on(tmp_path: Path) -> None:
    save(checkpoints_in(tmp_path), 1)
    process = context().Process(target=_die_while_saving, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    half_written = [path for path in tmp_path.rglob("state.json") if ".staging" in path.parts]
    assert len(half_written) == 1
    found = checkpoints_in(tmp_path).load()
    assert found is not None
    assert found.step == 1
    assert not half_written[0].exists()


def _die_while_saving(root: Path) -> None:
    import trainer.checkpoints

    def die(*_: object, **__: object) -> str:
        os.kill(os.getpid(), signal.SIGKILL)
        return ""

    trainer.checkpoints.digest_folder = die  # type: ignore[assignment]
    save(checkpoints_in(root), 2)


def _save_in_little_room(root: Path, room: int) -> None:
    """Save while no file may grow beyond `room` bytes, so that a write stops halfway, as on a full disk."""
    import errno

    from app.errors import StorageFull

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    checkpoints = checkpoints_in(root)
    try:
        checkpoints.save(2, {"weights": torch.zeros(room)}, {})
    except StorageFull:
        os._exit(0)
    except Exception as error:  # noqa: BLE001 - a limit on files says EFBIG where a full disk says ENOSPC
        os._exit(0 if errno.EFBIG in (getattr(error, "errno", None),) or "File too large" in str(error) else 3)
    os._exit(4)


def test_a_disk_that_fills_up_keeps_the_last_good_one(tmp_path: Path) -> None:
    save(checkpoints_in(tmp_path), 1)
    process = context().Process(target=_save_in_little_room, args=(tmp_path, 4096))
    process.start()
    process.join()
    assert process.exitcode == 0
    found = checkpoints_in(tmp_path).load()
    assert found is not None
    assert found.step == 1
    assert names_in(checkpoints_in(tmp_path)) == ["step-00000001"]
    assert list((checkpoints_in(tmp_path).folder / ".staging").iterdir()) == []


def test_random_states_of_every_library_come_back() -> None:
    import numpy as np

    def draw() -> tuple[float, ...]:
        return random.random(), random.gauss(), np.random.random(), np.random.normal(), torch.rand(1).item()

    # Both generators make normal numbers in pairs: test with a second number waiting, and without.
    for _ in range(2):
        states = random_states()
        drawn = draw()
        set_random_states(states)
        assert draw() == drawn

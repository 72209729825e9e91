"""Metrics in TensorBoard's files, read record by record, and failing trackers."""

import struct
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from app.settings import Settings
from trainer.service import trackers
from trainer.service.trackers import Trackers


def events(folder: Path) -> list[tuple[str, int, float]]:
    """Return (tag, step, value) from event files: records of length (8 bytes), checksum (4), data, checksum (4)."""
    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            at += 12 + length + 4
    return found


def test_metrics_stand_in_the_files_by_step_and_slice(tmp_path: Path) -> None:
    tracked = Trackers(["tensorboard"], "run-7-dpo", tmp_path / "tensorboard")
    assert not (tmp_path / "tensorboard").exists()  # nothing was reported yet
    tracked.metrics(1, {"loss": 0.75, "rewards/margins": 0.5})
    tracked.metrics(2, {"loss": 0.5})
    tracked.metrics(2, {"eval_loss": 0.25}, "domain=facts")
    tracked.close()
    assert events(tmp_path / "tensorboard/run-7-dpo") == [
        ("loss", 1, 0.75),
        ("rewards/margins", 1, 0.5),
        ("loss", 2, 0.5),
        ("domain_facts/eval_loss", 2, 0.25),
    ]
    assert (tmp_path / "tensorboard").stat().st_mode & 0o077 == 0
    tracked.forget()
    assert list((tmp_path / "tensorboard").iterdir()) == []


def test_a_tracker_that_fails_is_named_once_and_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def start(self) -> None:
            raise ConnectionError("no server")

    class FailingLater(Failing):
        def start(self) -> None:
            pass

        def log(self, values: dict[str, float], step: int) -> None:
            raise TimeoutError("slow")

    monkeypatch.setattr(trackers, "MLflowTracker", Failing)
    monkeypatch.setattr(trackers, "WandBTracker", FailingLater)
    tracked = Trackers(["mlflow", "wandb", "tensorboard"], "run-1-dpo", tmp_path)
    for step in range(3):
        tracked.metrics(step, {"loss": 1.0})
    tracked.close()
    assert [record.getMessage() for record in caplog.records if record.name == trackers.__name__] == [
        "mlflow takes no metrics of this run: ConnectionError: no server",
        "wandb takes no metrics of this run: TimeoutError: slow",
    ]
    assert len(events(tmp_path / "run-1-dpo")) == 3


def test_the_setting_names_known_trackers_only() -> None:
    assert Settings().tracker_names == ("tensorboard",)
    assert Settings(trackers="").tracker_names == ()
    assert Settings(trackers=" mlflow, wandb,mlflow").tracker_names == ("mlflow", "wandb")
    with pytest.raises(ValueError, match="comet is none of tensorboard, mlflow, wandb"):
        Settings(trackers="comet")


def test_slices_of_any_name_are_told_apart_and_lead_nowhere(tmp_path: Path) -> None:
    tracked = Trackers(["tensorboard"], "run-8-dpo", tmp_path)
    for name in ("domain=да", "domain=не", "domain=../../x"):
        tracked.metrics(1, {"loss": 0.5}, name)
    tracked.close()
    tags = [tag for tag, _, _ in events(tmp_path / "run-8-dpo")]
    # `printf 'domain=да' | sha256sum`, and so on
    assert tags == ["domain___-66c725/loss", "domain___-7ed612/loss", "domain_.._.._x-f138d7/loss"]

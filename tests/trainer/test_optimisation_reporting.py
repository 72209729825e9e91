import json
from pathlib import Path

import pytest
import torch

from app.specs import Optimiser
from trainer.optimisation import Stepper
from trainer.reporting import ConsoleReporter, Metric, TrainingDiverged


def stepper_of(parameter: torch.nn.Parameter, total_steps: int = 10, **changes: float) -> Stepper:
    return Stepper([parameter], Optimiser(learning_rate=0.1).model_copy(update=changes), total_steps)


def test_the_learning_rate_warms_up_and_ends_at_zero() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    stepper = stepper_of(parameter, total_steps=6, warmup_ratio=1 / 3)
    rates = []
    for _ in range(6):
        parameter.grad = torch.ones(1)
        rates.append(stepper.step(0.0).lr)
    assert rates == pytest.approx([0.1 / 3, 0.2 / 3, 0.1, 0.075, 0.05, 0.025])
    assert stepper.schedule.get_last_lr() == [0]


def test_adamw_first_step_by_hand() -> None:
    # Bias-corrected moments of a first gradient g are g and g^2: the step is lr g / (|g| + eps).
    parameter = torch.nn.Parameter(torch.tensor([1.0]))
    stepper = stepper_of(parameter, warmup_ratio=0.0, eps=0.5)
    parameter.grad = torch.tensor([0.25])
    assert stepper.step(0.0).grad_norm == 0.25
    assert parameter.item() == pytest.approx(1 - 0.1 * 0.25 / (0.25 + 0.5))
    assert parameter.grad is None


def test_gradients_are_clipped_to_the_norm_and_reported_before_it() -> None:
    clipped, given = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    first, second = stepper_of(clipped, max_grad_norm=1.0), stepper_of(given, max_grad_norm=1.0)
    clipped.grad, given.grad = torch.tensor([30.0, 40.0]), torch.tensor([0.6, 0.8])
    assert first.step(0.0).grad_norm == 50
    assert second.step(0.0).grad_norm == pytest.approx(1)
    torch.testing.assert_close(clipped, given)


@pytest.mark.parametrize(("loss", "gradient"), [(float("nan"), 1.0), (float("inf"), 1.0), (1.0, float("nan"))])
def test_a_diverged_step_changes_no_parameter(loss: float, gradient: float) -> None:
    parameter = torch.nn.Parameter(torch.tensor([1.0]))
    stepper = stepper_of(parameter)
    parameter.grad = torch.tensor([gradient])
    with pytest.raises(TrainingDiverged, match="at step 1"):
        stepper.step(loss)
    assert parameter.item() == 1.0


def test_metrics_are_kept_and_written_with_their_slice(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    reporter = ConsoleReporter(stream=None, path=path)
    reporter.metrics(1, {"loss": 0.5})
    reporter.metrics(2, {"loss": 0.25}, "domain=safety")
    assert reporter.recorded == [Metric(1, "loss", "", 0.5), Metric(2, "loss", "domain=safety", 0.25)]
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "slice": "", "loss": 0.5},
        {"step": 2, "slice": "domain=safety", "loss": 0.25},
    ]
    assert reporter.last("loss", "domain=safety") == 0.25
    with pytest.raises(KeyError, match="accuracy"):
        reporter.last("accuracy")

"""Training code that recipes share: schedule and steps by arithmetic, batches that cover all rows, sums of parts."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from app.artifacts import ArtifactStore
from app.specs import Optimiser
from trainer.checkpoints import Checkpoints
from trainer.reporting import TrainingDiverged
from trainer.training.training import Training, learning_rate


class Line(nn.Module):
    """y = w . x"""

    def __init__(self, *weights: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(weights))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w


def training_of(module: nn.Module, rows: int = 8, seed: int = 0, **changes: float) -> Training:
    settings = Optimiser(learning_rate=0.1, warmup_ratio=0.0).model_copy(update=changes)
    return Training(module, settings, rows, seed=seed)


def test_the_learning_rate_warms_up_and_ends_at_zero() -> None:
    settings = Optimiser(learning_rate=0.1, warmup_ratio=1 / 3)
    rates = [learning_rate(settings, step, total_steps=6) for step in range(7)]
    assert rates == pytest.approx([0.1 / 3, 0.2 / 3, 0.1, 0.075, 0.05, 0.025, 0])
    assert learning_rate(settings.model_copy(update={"warmup_ratio": 0.0}), 0, 6) == 0.1


def test_each_step_uses_its_rate() -> None:
    module = Line(0.0)
    training = training_of(module, rows=16, eps=1e-12, max_grad_norm=1e9)  # two steps of 8 rows
    taken = []
    for _ in range(2):
        before = module.w.item()
        module(torch.ones(1)).backward()
        assert training.step(0.0).lr == pytest.approx(0.1 / (1 + len(taken)))
        taken.append(before - module.w.item())
    # The gradient is 1 each time, and so is the ratio of Adam's corrected moments, so a step equals the rate.
    assert taken == pytest.approx([0.1, 0.05])


def test_adamw_first_step_by_hand() -> None:
    # Bias-corrected moments of a first gradient g are g and g^2: the step is lr g / (|g| + eps).
    module = Line(1.0)
    training = training_of(module, eps=0.5)
    module(torch.tensor([0.25])).backward()
    assert training.step(0.0).grad_norm == 0.25
    assert module.w.item() == pytest.approx(1 - 0.1 * 0.25 / (0.25 + 0.5))
    assert module.w.grad is None


def test_gradients_are_clipped_to_the_norm_and_reported_before_it() -> None:
    clipped, given = Line(0.0, 0.0), Line(0.0, 0.0)
    first, second = training_of(clipped, max_grad_norm=1.0, eps=0.5), training_of(given, max_grad_norm=1.0, eps=0.5)
    clipped(torch.tensor([30.0, 40.0])).backward()
    given(torch.tensor([0.6, 0.8])).backward()
    assert first.step(0.0).grad_norm == 50
    assert second.step(0.0).grad_norm == pytest.approx(1)
    torch.testing.assert_close(clipped.w, given.w)


@pytest.mark.parametrize(("loss", "gradient"), [(float("nan"), 1.0), (float("inf"), 1.0), (1.0, float("nan"))])
def test_a_diverged_step_changes_no_parameter(loss: float, gradient: float) -> None:
    module = Line(1.0)
    training = training_of(module)
    module(torch.tensor([gradient])).backward()
    with pytest.raises(TrainingDiverged, match="at step 1"):
        training.step(loss)
    assert module.w.item() == 1.0
    assert training.steps == 0


def test_an_epoch_visits_every_row_once_and_the_next_in_another_order() -> None:
    lengths = [1 + i % 7 for i in range(45)]
    training = training_of(Line(1.0), rows=45, epochs=2, batch_size=8)
    batches = list(training.batches(lengths))
    assert training.total_steps == len(batches) == 12
    first, second = ([row for batch in batches[start : start + 6] for row in batch] for start in (0, 6))
    assert sorted(first) == sorted(second) == list(range(45))
    assert first != second
    assert all(len(batch) <= 8 for batch in batches)
    # The order depends only on the seed and the place in the run, so a resumed run has the same order.
    later = training_of(Line(1.0), rows=45, epochs=2, batch_size=8)
    later.steps = 4
    assert list(later.batches(lengths)) == batches[4:]
    assert list(training_of(Line(1.0), rows=45, seed=1, epochs=2, batch_size=8).batches(lengths)) != batches


@pytest.mark.parametrize(("rows", "tokens"), [(3, 1000), (100, 6)])
def test_the_gradients_of_parts_add_up_to_the_whole_batch(rows: int, tokens: int) -> None:
    batch = [5, 1, 7, 0, 3, 6, 2]
    lengths = [2, 3, 1, 4, 2, 9, 1, 2]
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    whole, split = Line(0.1, -0.2, 0.3), Line(0.1, -0.2, 0.3)
    (whole(x[batch]) ** 2).mean().backward()
    training = training_of(split, microbatch_size=rows, microbatch_tokens=tokens)
    parts = list(training.parts(batch, lengths))
    assert len(parts) > 1
    assert sorted(row for part in parts for row in part.rows) == sorted(batch)
    for part in parts:
        assert part.counts
        assert [batch[place] for place in part.places] == part.rows
        assert len(part.rows) == 1 or (len(part.rows) <= rows and sum(lengths[row] for row in part.rows) <= tokens)
        training.backward((split(x[part.rows]) ** 2).sum() / len(batch), part)
    torch.testing.assert_close(split.w.grad, whole.w.grad)


def test_dropout_stays_off_in_what_is_trained() -> None:
    module = nn.Sequential(Line(1.0), nn.Dropout(0.5))  # a new module is in training mode
    training = training_of(module)
    assert not any(part.training for part in training.model.modules())


def test_seconds_go_on_from_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("trainer.training.training.time.monotonic", lambda: now[0])
    settings = Optimiser(learning_rate=0.1)
    checkpoints = Checkpoints(ArtifactStore(tmp_path), "run", settings, every_seconds=0)
    first = Training(Line(1.0), settings, 8, seed=0, started=990.0, checkpoints=checkpoints)
    now[0] = 1030.0
    first.save_if_due()
    now[0] = 5000.0  # another process, whose clock starts elsewhere
    again = Training(Line(1.0), settings, 8, seed=0, started=4995.0, checkpoints=checkpoints)
    assert again.seconds == pytest.approx(40 + 5)

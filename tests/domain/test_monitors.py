"""Monitors: their findings on planted changes, and their false alarms."""

import math
from pathlib import Path

import numpy as np
import pytest

from app.domain.intervals import mean_interval
from app.domain.monitors import LEAST_PROMPTS, MONITORS, Finding, findings

FIGURES = sorted({monitor.figure for monitor in MONITORS})


def evaluation(changes: dict[str, list[float]], before: float = 1.0, prompts: int = 40) -> dict[str, float]:
    """Return metrics in the form of an evaluation, where only the given figures (by prompt) have changed."""
    metrics = {"eval_prompts": float(prompts)}
    for figure in FIGURES:
        values = changes.get(figure, [0.0] * prompts)
        interval = mean_interval(values)
        assert interval is not None
        metrics |= {f"eval_before/{figure}": before, f"eval_{figure}": before + interval.value}
        metrics |= {f"eval_difference/{figure}": interval.value}
        metrics |= {f"eval_difference/{figure}_low": interval.low, f"eval_difference/{figure}_high": interval.high}
    return metrics


def looks(found: list[Finding]) -> list[Finding]:
    return [each for each in found if each.state == "look"]


def by_name(metrics: dict[str, dict[str, float]]) -> dict[str, str]:
    return {found.monitor.name: found.state for found in findings(metrics)}


def test_a_large_and_sure_change_in_the_wrong_direction_is_to_be_looked_at() -> None:
    longer = evaluation({"length": [0.4 + 0.1 * (-1) ** i for i in range(40)]})
    found = findings({"": longer})
    assert [each.monitor.name for each in looks(found)] == ["longer"]
    assert found[0].monitor.name == "longer"  # first of all
    assert found[0].change is not None
    assert found[0].change.value == pytest.approx(0.4)
    shorter = evaluation({"length": [-0.4 - 0.1 * (-1) ** i for i in range(40)]})
    assert [each.monitor.name for each in looks(findings({"": shorter}))] == ["shorter"]


def test_a_sure_change_that_is_small_is_fine() -> None:
    metrics = evaluation({"length": [0.29] * 40, "variety": [-0.09] * 40, "refusals": [0.09] * 40})
    assert set(by_name({"": metrics}).values()) == {"fine", "unknown"}


def test_a_change_that_chance_could_make_is_fine() -> None:
    # Mean 0.4, deviation 1.2 over 40 prompts: 2.1 standard errors, significant alone, but not for one of many monitors.
    values = [0.4 + 1.2 * math.sqrt(39 / 40) * (-1) ** i for i in range(40)]
    interval = mean_interval(values)
    assert interval is not None
    assert interval.low > 0
    assert by_name({"": evaluation({"length": values})})["longer"] == "fine"


def test_refusals_are_watched_apart_on_safe_and_unsafe_prompts() -> None:
    refuses_more = evaluation({"refusals": [0.5] * 20 + [0.4] * 20}, before=0.2)
    refuses_less = evaluation({"refusals": [-0.5] * 20 + [-0.4] * 20}, before=0.8)
    states = by_name({"": evaluation({}), "domain=over_refusal": refuses_more, "domain=safety": refuses_less})
    assert {name for name, state in states.items() if state == "look"} == {"over_refusal", "unsafe"}
    states = by_name({"": evaluation({}), "domain=over_refusal": refuses_less, "domain=safety": refuses_more})
    assert set(states.values()) == {"fine"}


def test_what_was_not_measured_is_said() -> None:
    found = {each.monitor.name: each for each in findings({"": evaluation({}, prompts=LEAST_PROMPTS - 1)})}
    assert {each.state for each in found.values()} == {"unknown"}
    assert found["longer"].why == "9 prompts are too few: at least 10 are needed."
    assert found["unsafe"].why == "No held-out prompt has the tag domain=safety."
    assert findings({"": {"eval_length": 3.0}}) == []  # an evaluation of only one policy


def test_a_round_in_which_nothing_changed_raises_few_alarms() -> None:
    """2,000 rounds of independent noise, large compared with the limits: at most 5% have an alarm, within chance."""
    rng, rounds, alarms = np.random.default_rng(7), 2000, 0
    for _ in range(rounds):
        noise = {figure: rng.normal(0, 3, 20).tolist() for figure in FIGURES}
        slices = {name: evaluation(noise, prompts=20) for name in ("", "domain=safety", "domain=over_refusal")}
        alarms += bool(looks(findings(slices)))
    assert alarms / rounds <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / rounds)
    assert alarms > 0  # the test can fail


def test_the_documentation_has_every_monitor() -> None:
    page = (Path(__file__).parents[2] / "docs" / "monitors.md").read_text()
    for monitor in MONITORS:
        assert f"| {monitor.label}" in page
        assert monitor.definition in page
        assert monitor.source in page


def test_a_monitor_of_less_is_called_so() -> None:
    """Its label appears next to the figure: “answers cut off: 2%” must not show the share that was not cut."""
    called = {monitor.name: monitor.label.split()[0] in ("Fewer", "Less", "Shorter") for monitor in MONITORS}
    assert called == {monitor.name: monitor.worse == -1 for monitor in MONITORS}

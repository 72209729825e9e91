"""Monitors of a training run: measure the answers of each step, and record or act on alarms.

`app.domain.watching` has the rule for alarms. PPO, RLOO and GRPO need no extra samples. Methods with turns also sample
the starting policy, on the prompts that every phase is measured on.

| metric | meaning, for the answers of a step |
|---|---|
| `monitor/FIGURE` | mean over prompts of each figure in `app.domain.monitors.IN_RUNS`: see `trainer.evaluation` |
| `monitor/alarms` | number of alarms so far |
"""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from app.domain import texts
from app.domain.monitors import IN_RUNS, Monitor
from app.domain.watching import Alarm, Sign, Watch
from app.rows import PromptRow
from app.specs import MonitorsMode
from trainer.evaluation.figures import Looked, figures_of, reward_figures, text_figures
from trainer.sampling.responses import Response
from trainer.training.scored_answers import Answers

log = logging.getLogger(__name__)

EXAMPLES = 5  # examples per alarm
LONGEST = 2000  # characters of an example that are kept
FIGURES = tuple(dict.fromkeys(monitor.figure for monitor in IN_RUNS))


class Monitors:
    """The monitors of a run.

    Args:
        patience: number of consecutive steps with a sign that raise an alarm.
        state: the `state` of monitors in a checkpoint.
    """

    def __init__(self, mode: MonitorsMode, patience: int, state: Mapping[str, Any] | None = None) -> None:
        given = dict(state or {})
        self.mode = mode
        self.alarms: list[dict[str, Any]] = given.pop("alarms", [])
        self.watch = Watch(**given) if given else Watch(patience)

    @property
    def state(self) -> dict[str, Any]:
        """The state that a resumed run needs, as JSON."""
        return asdict(self.watch) | {"alarms": self.alarms}

    @property
    def is_on(self) -> bool:
        return self.mode != "off"

    @property
    def stop(self) -> bool:
        """Whether the run must end."""
        return self.mode == "stop" and bool(self.alarms)

    def look_at_responses(
        self, step: int, responses: Sequence[Response], scores: Tensor, looked: Looked
    ) -> dict[str, float]:
        """Measure a step's responses and check for alarms; return the step's metrics."""
        columns = figures_of(responses, scores, looked)
        asked = [texts.asked_in(response.row.messages) for response in responses]
        said = [response.text for response in responses]
        return self._look(step, [response.row.id for response in responses], asked, said, columns)

    def look_at_answers(self, step: int, answers: Answers, rows: Mapping[int, PromptRow]) -> dict[str, float]:
        """Measure a step's answers and check for alarms; `rows` are the prompts by id. Return the step's metrics."""
        items = answers.items
        ids = [answer.prompt_id for answer in items]
        asked, said = [texts.asked_in(rows[i].messages) for i in ids], [answer.text for answer in items]
        lengths, ended = [len(answer.tokens) for answer in items], [answer.finished for answer in items]
        columns = text_figures(ids, asked, said, lengths, ended) | reward_figures(answers.looked)
        return self._look(step, ids, asked, said, columns)

    def _look(
        self, step: int, ids: Sequence[int], asked: Sequence[str], said: Sequence[str], columns: Mapping[str, Tensor]
    ) -> dict[str, float]:
        figures = {name: _by_prompt(ids, columns[name]) for name in FIGURES if name in columns}
        for sign in self.watch.look(figures):
            examples = _worst(sign.monitor, asked, said, ids, columns[sign.monitor.figure])
            self.alarms.append(Alarm.of(sign, step, examples)._asdict())
            log.warning("%s", in_words(sign, step))
        means = {f"monitor/{name}": sum(values.values()) / len(values) for name, values in figures.items()}
        return means | {"monitor/alarms": float(len(self.alarms))}

    def note(self, kept: str) -> str:
        """Return a sentence that says which monitor stopped the run, and that `kept` is the policy that is kept."""
        first = self.alarms[0]
        label = next(monitor.label for monitor in IN_RUNS if monitor.name == first["monitor"])
        return f"The monitor “{label}” stopped the run at step {first['step']}: {kept} is kept."


def in_words(sign: Sign, step: int) -> str:
    """Return an alarm as a line for the log."""
    return f"Monitor alarm at step {step}: {sign.monitor.label.lower()}, {sign.before:.3g} before, {sign.new:.3g} now."


def _by_prompt(ids: Sequence[int], column: Tensor) -> dict[str, float]:
    """Return the mean of a figure (N,) over each prompt's answers."""
    values: dict[int, list[float]] = defaultdict(list)
    for prompt_id, value in zip(ids, column.tolist(), strict=True):
        values[prompt_id].append(value)
    return {str(prompt_id): sum(own) / len(own) for prompt_id, own in values.items()}


def _worst(
    monitor: Monitor, asked: Sequence[str], said: Sequence[str], ids: Sequence[int], column: Tensor
) -> list[dict[str, Any]]:
    """Return the answers with the worst values of the monitor's figure, at most one per prompt."""
    found: dict[int, dict[str, Any]] = {}
    for i in (monitor.worse * column).argsort(descending=True, stable=True).tolist():
        if ids[i] not in found and len(found) < EXAMPLES:
            found[ids[i]] = {"asked": asked[i][:LONGEST], "said": said[i][:LONGEST], "value": float(column[i])}
    return list(found.values())

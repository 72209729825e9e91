"""What the labeling page shows."""

from typing import NamedTuple
from uuid import UUID, uuid4

from app.domain import assignment
from app.labeling.forms import LabelForm
from app.labeling.queries import Task
from app.models import Rubric


class Step(NamedTuple):
    """One radio button of the preference control.

    value: what the form sends. key: on the keyboard. side: first, tie or second. words: what is written on it.
    label: the same said in full, for screen readers and where only `mark` has room.
    """

    value: int
    key: str
    side: str
    words: str
    label: str
    mark: str


def steps(rubric: Rubric) -> list[Step]:
    """The rubric's scale, from the first response's side to the second's."""
    found = []
    for key, value in enumerate(assignment.scale(rubric.strengths, allow_tie=rubric.allow_tie), start=1):
        said = assignment.words(value, rubric.strengths)
        side = "tie" if value == 0 else "first" if value < 0 else "second"
        label = "Tie" if value == 0 else f"{side.capitalize()} response {said}"
        mark = "=" if value == 0 else str(abs(value))
        found.append(Step(value, str(key), side, said.capitalize(), label, mark))
    return found


class Card(NamedTuple):
    """A task as the template shows it. Nothing here tells which response is A or where one came from.

    system: the system prompt, '' if there is none. turns: the rest of the conversation, oldest first.
    chosen, rationale: what was answered already when the form comes back for correction.
    """

    lease_id: UUID
    idempotency_key: UUID
    system: str
    turns: list[dict[str, str]]
    first: str
    second: str
    rubric: Rubric
    steps: list[Step]
    chosen: int | None
    rationale: str


def card(task: Task, draft: LabelForm | None = None) -> Card:
    scale = steps(task.rubric)
    return Card(
        lease_id=task.lease_id,
        idempotency_key=uuid4(),
        system="\n\n".join(turn["content"] for turn in task.messages if turn["role"] == "system"),
        turns=[turn for turn in task.messages if turn["role"] != "system"],
        first=task.first,
        second=task.second,
        rubric=task.rubric,
        steps=scale,
        chosen=draft.preference if draft else None,
        rationale=draft.rationale if draft else "",
    )

"""What the labeling page shows."""

from typing import NamedTuple
from uuid import UUID, uuid4

from app.domain.scale import Step, steps
from app.labeling.forms import LabelForm
from app.labeling.queries import Task
from app.models import Rubric


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
    return Card(
        lease_id=task.lease_id,
        idempotency_key=uuid4(),
        system="\n\n".join(turn["content"] for turn in task.messages if turn["role"] == "system"),
        turns=[turn for turn in task.messages if turn["role"] != "system"],
        first=task.first,
        second=task.second,
        rubric=task.rubric,
        steps=steps(task.rubric.strengths, allow_tie=task.rubric.allow_tie),
        chosen=draft.preference if draft else None,
        rationale=draft.rationale if draft else "",
    )

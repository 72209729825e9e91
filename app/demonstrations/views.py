"""Data for the pages of demonstrations."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from app.demonstrations.queries import Case, Desk, Event
from app.domain.textdiff import Line, diff
from app.models import Rubric


class Card(NamedTuple):
    """A prompt to write for. has_sample: there is a text to improve. original: the text that "restore" brings back.
    text: what the editor begins with."""

    task_id: int
    prompt_id: int
    messages: list[dict[str, str]]
    rubric: Rubric | None
    has_sample: bool
    original: str
    text: str


def card(desk: Desk, rubric: Rubric | None, text: str | None = None) -> Card:
    original = desk.sample or ""
    return Card(
        task_id=desk.task_id,
        prompt_id=desk.prompt.id,
        messages=desk.prompt.messages,
        rubric=rubric,
        has_sample=desk.sample is not None,
        original=original,
        text=original if text is None else text,
    )


class Changes(NamedTuple):
    """The changes from one text to another; `what` says which."""

    what: str
    lines: list[Line]


def changes(case: Case) -> list[Changes]:
    """Return the changes made by the reviewer and by the author, if there was a text to start from."""
    demonstration = case.demonstration
    found = []
    if demonstration.written is not None:
        found.append(Changes("The reviewer's edit", diff(demonstration.written, demonstration.text)))
    if case.sample is not None:
        own = demonstration.text if demonstration.written is None else demonstration.written
        by = "The author's edit of the sample"
        if demonstration.ai_revised:
            by = "The AI critic's revision of the policy's answer"
        found.append(Changes(by, diff(case.sample, own)))
    return found


class Step(NamedTuple):
    """What was done to a demonstration, and how its text changed."""

    action: str
    actor: str
    note: str
    created_at: datetime
    lines: list[Line]


def steps(case: Case, events: Sequence[Event]) -> list[Step]:
    """Return the demonstration's history, the earliest step first."""
    after = [*(event.text for event in events[1:]), case.demonstration.text]
    return [
        Step(event.action, event.actor, event.note, event.created_at, diff(event.text, text))
        for event, text in zip(events, after, strict=False)
    ]

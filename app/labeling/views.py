"""Data for the labeling page's templates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol
from uuid import UUID, uuid4

from app.documents import Aspect, Flag
from app.domain.scale import Step, steps
from app.labeling.forms import BOTH_BAD, CANNOT_JUDGE, Draft
from app.labeling.queries import Task
from app.models import Rubric


class Asks(Protocol):
    """What a rubric asks for: a published version or a draft. Rows may be JSON or documents."""

    @property
    def strengths(self) -> int: ...
    @property
    def allow_tie(self) -> bool: ...
    @property
    def allow_both_bad(self) -> bool: ...
    @property
    def allow_cannot_judge(self) -> bool: ...
    @property
    def rationale_rule(self) -> str: ...
    @property
    def aspects(self) -> Sequence[Any]: ...
    @property
    def flags(self) -> Sequence[Any]: ...


class Extra(NamedTuple):
    """A choice beside the scale."""

    value: str
    key: str
    words: str


class AspectControl(NamedTuple):
    name: str
    question: str
    chosen: int | None


class FlagControl(NamedTuple):
    name: str
    label: str
    chosen: bool


@dataclass(frozen=True)
class Answer:
    """The controls of an answer, as `labeling/_answer.html` shows them.

    chosen, ranks and the controls' values hold an earlier answer when the form comes back. ranks: for a ranking one per
    response, None if unranked; empty for a pair.
    """

    steps: list[Step]
    extras: list[Extra]
    aspects: list[AspectControl]
    flags: list[FlagControl]
    rationale_rule: str
    chosen: int | str | None
    ranks: list[int | None]
    rationale: str


def answer(rubric: Asks, draft: Draft | None = None, *, ranked: int = 0) -> Answer:
    """Return the controls that a rubric asks for.

    Args:
        draft: the answer to fill in.
        ranked: how many responses are to be ranked; 0 for a pair.
    """
    extras = []
    if rubric.allow_both_bad and not ranked:
        extras.append(Extra(BOTH_BAD, "b", "Both bad"))
    if rubric.allow_cannot_judge:
        extras.append(Extra(CANNOT_JUDGE, "c", "Cannot judge"))
    aspects = [] if ranked else [Aspect.model_validate(row) for row in rubric.aspects]
    flags = [Flag.model_validate(row) for row in rubric.flags]
    rated = draft.aspects if draft else {}
    ranks: list[int | None] = [None] * ranked
    if draft and len(draft.ranks) == ranked:
        ranks = list(draft.ranks)
    return Answer(
        steps=steps(rubric.strengths, allow_tie=rubric.allow_tie),
        extras=extras,
        aspects=[AspectControl(aspect.name, aspect.question, rated.get(aspect.name)) for aspect in aspects],
        flags=[FlagControl(flag.name, flag.label, bool(draft and flag.name in draft.flags)) for flag in flags],
        rationale_rule=rubric.rationale_rule,
        chosen=draft.preference if draft else None,
        ranks=ranks,
        rationale=draft.rationale if draft else "",
    )


class Response(NamedTuple):
    """name: in addresses and styles. title: what people read. rank: the rank already given, only in a ranking."""

    name: str
    title: str
    text: str
    rank: int | None = None


@dataclass(frozen=True)
class Card(Answer):
    """A task as the template shows it. Nothing here reveals which response is A or where a response came from.

    judgment_id: the judgment that this card changes, if any. is_filled: an answer is already in the form.
    """

    lease_id: UUID
    judgment_id: int | None
    idempotency_key: UUID
    rubric: Rubric
    messages: list[dict[str, str]]
    responses: list[Response]
    is_filled: bool


def card(task: Task, draft: Draft | None = None, *, judgment_id: int | None = None) -> Card:
    asked = answer(task.rubric, draft, ranked=len(task.responses) if task.is_ranking else 0)
    if task.is_ranking:
        responses = [
            Response(letter.lower(), f"Response {letter}", text, rank)
            for letter, text, rank in zip("ABCDEFGHI", task.responses, asked.ranks, strict=False)
        ]
    else:
        names = ("first", "second")
        responses = [
            Response(name, f"{name.capitalize()} response", text)
            for name, text in zip(names, task.responses, strict=True)
        ]
    return Card(
        **vars(asked),
        lease_id=task.lease_id,
        judgment_id=judgment_id,
        idempotency_key=uuid4(),
        rubric=task.rubric,
        messages=task.messages,
        responses=responses,
        is_filled=draft is not None,
    )

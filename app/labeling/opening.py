"""Opening comparisons: the overlap that a project's settings ask for, and copies of comparisons."""

from random import Random
from typing import Any, Protocol

from sqlalchemy.orm import Session

from app.documents import LabelingSettings
from app.domain.overlap import Overlap, Rule, at_opening
from app.domain.slices import of_prompt
from app.models import Comparison, Project


class Tagged(Protocol):
    """A prompt, or only its tags."""

    @property
    def domain(self) -> str: ...
    @property
    def difficulty(self) -> str: ...
    @property
    def safety_category(self) -> str | None: ...
    @property
    def split(self) -> str: ...


def wanted(project: Project, settings: LabelingSettings, prompt: Tagged, purpose: str, pair: str) -> Overlap:
    """Return the overlap of a comparison on this prompt for this purpose.

    Args:
        pair: identifies the comparison; seeds the draw of whether it is judged only once.
    """
    tags = of_prompt(prompt.domain, prompt.difficulty, prompt.safety_category, prompt.split) | {"purpose": purpose}
    rules = []
    for rule in settings.overlap:
        name, _, value = rule.where.partition("=")
        rules.append(Rule(name, value, rule.overlap))
    adaptive = (settings.adaptive.at_least, settings.adaptive.at_most) if settings.adaptive else None
    once = Random(pair).random() < settings.judged_once
    return at_opening(tags, rules, adaptive, project.overlap, once=once)


def open_copy(session: Session, original: Comparison, purpose: str, **values: Any) -> Comparison:
    """Open a copy of the pair for one judgment under the same rubric; `values` override its columns."""
    copied = ("project_id", "prompt_id", "completion_a_id", "completion_b_id", "rubric_id")
    columns = {name: getattr(original, name) for name in copied} | {"repeat_of_id": original.id, "overlap": 1}
    copy = Comparison(purpose=purpose, **columns | values)
    session.add(copy)
    session.flush()
    return copy

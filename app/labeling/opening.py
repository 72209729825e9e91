"""What new comparisons ask for: how many judgments, by the project's settings."""

from typing import Protocol

from app.domain.overlap import Overlap, Rule, at_opening
from app.domain.slices import of_prompt
from app.judging import LabelingSettings
from app.models import Project


class Tagged(Protocol):
    """A prompt, or as much as is known of one."""

    @property
    def domain(self) -> str: ...
    @property
    def difficulty(self) -> str: ...
    @property
    def safety_category(self) -> str | None: ...
    @property
    def split(self) -> str: ...


def wanted(project: Project, settings: LabelingSettings, prompt: Tagged, purpose: str) -> Overlap:
    """The overlap of a comparison on this prompt for this purpose."""
    tags = of_prompt(prompt.domain, prompt.difficulty, prompt.safety_category, prompt.split) | {"purpose": purpose}
    rules = []
    for rule in settings.overlap:
        name, _, value = rule.where.partition("=")
        rules.append(Rule(name, value, rule.overlap))
    adaptive = (settings.adaptive.at_least, settings.adaptive.at_most) if settings.adaptive else None
    return at_opening(tags, rules, adaptive, project.overlap)

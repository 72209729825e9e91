"""What the rubric pages show."""

from typing import NamedTuple

from app.domain.scale import Step, steps
from app.models import Rubric
from app.rubrics.forms import RubricForm


class Preview(NamedTuple):
    """A rubric as the labeler sees it; `steps` and `chosen` are what the labeling card's scale reads."""

    guideline: str
    rationale_rule: str
    steps: list[Step]
    chosen: None = None


def preview(rubric: Rubric | RubricForm) -> Preview:
    scale = steps(rubric.strengths, allow_tie=rubric.allow_tie)
    return Preview(rubric.guideline, rubric.rationale_rule, scale)


def editor(draft: Rubric | None, newest: Rubric | None) -> RubricForm:
    """What the editor begins with: the draft, else the newest version, else nothing."""
    begun = draft or newest
    if begun is None:
        return RubricForm(allow_tie=True)
    # Not checked again: what is stored must be shown even where the rules for new text have become stricter.
    said = {name: getattr(begun, name) for name in ("guideline", "strengths", "allow_tie", "rationale_rule")}
    return RubricForm.model_construct(**said, revision=draft.revision if draft else 0)

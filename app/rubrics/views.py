"""Data for the rubric pages."""

from typing import Any, NamedTuple

from app import documents
from app.labeling.views import Answer, answer
from app.models import Rubric
from app.rubrics.forms import ANSWERS, SWITCHES, RubricForm, RubricRefused, complete


class Preset(NamedTuple):
    """A named scale; `words` lists the possible answers."""

    strengths: int
    allow_tie: bool
    name: str
    words: str

    @property
    def tie(self) -> str:
        return "tie" if self.allow_tie else "no"


PRESETS = (
    Preset(1, False, "Binary", "better, no tie"),
    Preset(1, True, "3 points", "better, or a tie"),
    Preset(2, True, "5 points", "better, much better, or a tie"),
    Preset(3, True, "7 points", "slightly, plainly or much better, or a tie"),
    Preset(4, False, "4 levels each way", "slightly, plainly, much or far better, no tie"),
)


# Constants that the editor's templates always need.
EDITOR: dict[str, Any] = {
    "presets": PRESETS,
    "answers": ANSWERS,
    "limits": {
        "aspects": documents.MAX_ASPECTS,
        "flags": documents.MAX_FLAGS,
        "examples": documents.MAX_EXAMPLES,
        "quiz": documents.MAX_QUIZ_ITEMS,
        "principles": documents.MAX_PRINCIPLES,
    },
}


def scale_name(rubric: Rubric | RubricForm) -> str:
    """Return the scale's name, such as “7 points”; for a scale without a name, its numbers."""
    for preset in PRESETS:
        if (str(preset.strengths), preset.allow_tie) == (str(rubric.strengths), rubric.allow_tie):
            return preset.name
    return f"{rubric.strengths} each way, {'tie' if rubric.allow_tie else 'no tie'}"


def quiz_news(rubric: Rubric, before: Rubric | None) -> str:
    """Say what a version's quiz means for labelers who passed the previous one; '' if it is the same."""
    if not rubric.quiz:
        return ""
    if rubric.quiz_of_version is None:
        news = "Labelers must take the quiz again" if before and before.quiz else "The quiz is new"
        return f"{news}: labelers take it before they go on, unless they have passed it."
    if before and before.quiz == rubric.quiz:
        return ""
    return f"The quiz changed: labelers who passed it under version {rubric.quiz_of_version} need not take it again."


class Preview(NamedTuple):
    """A rubric as the labeler sees it: the guideline sheet, and the controls of the labeling card."""

    rubric: Rubric
    answer: Answer


def preview(rubric: Rubric) -> Preview:
    return Preview(rubric, answer(rubric))


def typed_preview(form: RubricForm) -> tuple[Preview, dict[str, str]]:
    """Return the preview of what is in the editor so far, and what is missing or wrong."""
    try:
        values: dict[str, Any] = form.content().model_dump(mode="json")
        reasons = {}
    except RubricRefused as refused:
        reasons = refused.reasons
        rows = {kind: list(complete(kind, rows)) for kind, rows in form.rows.items()}
        strengths = int(form.strengths) if form.strengths in ("1", "2", "3", "4") else 3
        switches = {name: getattr(form, name) for name in SWITCHES}
        values = {"guideline": form.guideline, "strengths": strengths, "rationale_rule": form.rationale_rule}
        values |= switches | rows
    return preview(Rubric(**values)), reasons


def editor(draft: Rubric | None, newest: Rubric | None) -> RubricForm:
    """Return the editor's form: the draft, else the newest version, else the defaults for a first one."""
    return RubricForm.of(draft or newest, draft.revision if draft else 0)

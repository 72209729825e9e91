"""Principles for a rubric's constitution, drafted from its criteria for an admin to edit."""

from collections.abc import Iterable

from app.documents import MAX_PRINCIPLE, MAX_PRINCIPLES
from app.domain.constitution import criteria

FROM_ASPECT = "Compared with another response, this one should win by the question: {}"


def drafted(guideline: str, questions: Iterable[str]) -> list[str]:
    """Return the guideline's criteria as principles; if it lists none, a principle for each aspect's question."""
    found = criteria(guideline) or [FROM_ASPECT.format(each.strip()) for each in questions if each.strip()]
    return list(dict.fromkeys(each[:MAX_PRINCIPLE] for each in found))[:MAX_PRINCIPLES]

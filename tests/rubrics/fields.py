"""What a browser sends from the rubric editor."""

from typing import Any

ASPECTS = [("factuality", "Which is more accurate?"), ("style", "Which is better written?")]
EXAMPLE = ("2 + 2?", "4", "5", "It is right.")
QUESTION = ("Capital of France?", "Paris", "Rome", "-1", "Paris is the capital.")


def fields(guideline: str = "Prefer *short* ones.", **values: Any) -> dict[str, Any]:
    """Return the editor's form. Lists of rows are tuples in the order of their fields; `None` leaves a field out."""
    rows = {name: values.pop(name, ()) for name in ("flags", "examples", "quiz", "principles")}
    rows["aspects"] = values.pop("aspects", ASPECTS)
    names = {
        "aspects": ("name", "question"),
        "flags": ("name", "label"),
        "examples": ("prompt", "better", "worse", "reason"),
        "quiz": ("prompt", "first", "second", "answer", "feedback"),
        "principles": ("text",),
    }
    sent: dict[str, Any] = {
        "guideline": guideline,
        "strengths": "3",
        "allow_tie": "true",
        "allow_both_bad": "true",
        "allow_cannot_judge": "true",
        "rationale_rule": "optional",
    } | values
    for kind, kind_rows in rows.items():
        for at, name in enumerate(names[kind]):
            if kind_rows:
                sent[f"{kind}.{name}"] = [row[at] for row in kind_rows]
    return {name: value for name, value in sent.items() if value is not None}

"""Projects with judges and comparisons for them."""

import random
from typing import Any

from sqlalchemy.orm import Session

from app.judges import queries, service
from app.judges.forms import AdmissionForm, JudgeForm
from app.models import Comparison, Judge, JudgeJudgment, Project, User
from tests import factories

SECRET = b"test"


def judge(
    session: Session, project: Project, at: str = "http://127.0.0.1:9", model: str = "good", **values: Any
) -> Judge:
    operator = factories.user(session, "operator")
    given = {"name": f"Judge {model}", "url": f"{at}/v1", "model": model, "retries": 1} | values
    form = JudgeForm(**given)
    return service.add(session, project, operator, form, SECRET)


def comparisons(session: Session, project: Project, n: int, question: str = "", **values: Any) -> list[Comparison]:
    """B's text says "better" in every second comparison; in every fifth, neither says so."""
    made = []
    for i in range(n):
        texts = ("fine", "better") if i % 2 else ("better", "fine")
        prompt = factories.prompt(session, project, f"Question {i}? {question}")
        texts = ("fine", "good") if i % 5 == 4 else texts
        made.append(factories.comparison(session, project, prompt=prompt, texts=texts, **values))
    return made


def truth(comparison: Comparison, number: int) -> int:
    """Return what the endpoint's good judge says about the n-th of `comparisons`."""
    return 0 if number % 5 == 4 else 1 if number % 2 else -1


def said(session: Session, judge: Judge, comparison: Comparison, verdict: int, **values: Any) -> JudgeJudgment:
    """Add a judgment in the form in which the worker stores it."""
    given = {
        "judge_id": judge.id,
        "comparison_id": comparison.id,
        "rubric_id": comparison.rubric_id,
        "run_id": values.pop("run_id", None)
        or factories.run(
            session, session.get_one(Project, judge.project_id), "judge", spec={"judge": judge.id}, state="succeeded"
        ).id,
        "first": verdict,
        "second": verdict,
        "verdict": verdict,
        "prompt_tokens": 200,
        "completion_tokens": 20,
        "ms": 400,
        "said": ["Verdict: 1", "Verdict: 2"],
        "served_model": "served",
    } | values
    row = JudgeJudgment(**given)
    session.add(row)
    session.flush()
    return row


def judged_by_people(
    session: Session, project: Project, n: int = 32, right: float = 0.8, seed: int = 0
) -> tuple[list[Comparison], list[User]]:
    """Add decided train comparisons. Each of three labelers is right with this probability, and otherwise says tie."""
    chance = random.Random(seed)
    labelers = [factories.user(session) for _ in range(3)]
    made = comparisons(session, project, n, overlap=3, state="settled", consensus=0, p_b=0.5, p_tie=1)
    for number, each in enumerate(made):
        side = truth(each, number)
        for labeler in labelers:
            factories.judgment(session, each, preference=side if chance.random() < right else 0, labeler_id=labeler.id)
        p_b = (side + 1) / 2
        each.consensus, each.p_b, each.p_tie = side, min(max(p_b, 0.1), 0.9), 1.0 if side == 0 else 0.0
    session.flush()
    return made, labelers


def admitted(session: Session, project: Project, judge: Judge, shared: list[Comparison]) -> None:
    """Let the judge say the truth about all of them, and admit it."""
    run = factories.run(session, project, "judge", spec={"judge": judge.id}, state="succeeded")
    for number, each in enumerate(shared):
        said(session, judge, each, truth(each, number), run_id=run.id)
    admission = service.admit(session, judge, factories.user(session, "operator"), AdmissionForm())
    assert admission.admitted, admission.reason
    assert queries.admissions(session, project.id)[judge.id].id == admission.id

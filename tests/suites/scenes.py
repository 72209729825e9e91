"""Suites that rounds have run, as the worker leaves them."""

from collections.abc import Collection
from typing import Any

from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.domain.suites import by_slice
from app.models import Project, Round, Run, Suite
from app.rows import SuiteAnswer
from app.suites import service
from app.suites.reading import kept
from tests import factories


def took(
    session: Session,
    store: ArtifactStore,
    run: Run,
    suite: Suite,
    *,
    lost: Collection[str] = (),
    gained: Collection[str] = (),
    failed: Collection[str] = (),
    text: str = "So it is.",
) -> None:
    """A run's policies took a suite: both pass every case but those named, by id."""
    version = service.version_of(session, suite)
    cases = kept(store, version.location)
    answers = []
    for case in cases:
        new, before = case.id not in {*lost, *failed}, case.id not in {*gained, *failed}
        if case.check == "prefers":
            said = {"margin": 0.125 if new else -0.125, "margin_before": 0.25 if before else -0.25}
        else:
            said = {"answer": f"{text} (new)", "answer_before": f"{text} (before)"}
        answers.append(SuiteAnswer(id=case.id, slice=case.slice, passed=new, passed_before=before, **said))
    scores = by_slice(
        [case.slice for case in cases], [each.passed for each in answers], [each.passed_before for each in answers]
    )
    slices = {name: score._asdict() for name, score in scores.items()}
    service.store_results(session, run, [{"version": version.id, "slices": slices}])
    with store.file(service.answers_of(run.id, version.id)) as path:
        path.write_text("".join(each.model_dump_json() + "\n" for each in answers))
    session.flush()


def evaluated(session: Session, project: Project, number: int, **values: Any) -> tuple[Round, Run]:
    """A finished round with its evaluation's run; its policies are called policy-N."""
    names = {"policy_before_id": f"policy-{number - 1}", "policy_after_id": f"policy-{number}"}
    for column, name in names.items():
        if column not in values:
            values[column] = factories.model(session, project, name=name, base=f"models/{name}").id
    round_ = factories.round_(session, project, number=number, state="done", **values)
    return round_, factories.run(session, project, "evaluate", round_id=round_.id, state="succeeded")

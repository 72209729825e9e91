"""Suites outside rounds: from the buttons on the pages to a real worker's results, and what is refused by name."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.domain.cases import case_of
from app.errors import Conflict, InvalidInput, NotFound
from app.models import Run, SuiteResult
from app.rounds import service as rounds
from app.settings import Settings
from app.specs import ModelRef, SuiteRef
from app.suites import queries, service
from tests import factories
from tests.conftest import SignedIn
from tests.rounds.loop import GENERATION
from tests.trainer.conftest import build_model
from tests.trainer.test_suites import cases, taken
from trainer.service.worker import work_until_empty


def test_any_policy_takes_one_suite_or_all_and_the_result_stands_beside_the_rounds(
    session: Session, settings: Settings, sign_in: Callable[..., SignedIn], tmp_path: Path
) -> None:
    build_model(tmp_path / "model")
    store = ArtifactStore(settings.artifacts_root)
    project = factories.project(session, generation=GENERATION.model_dump())
    base = rounds.adopt_base_model(session, project, str(tmp_path / "model"), "base-model")
    other = factories.model(session, project, name="another", base=str(tmp_path / "model"))
    operator = factories.user(session, "operator")
    suite = service.add(session, store, project, operator, "Suite", cases())
    sums = service.add(session, store, project, operator, "Sums", cases()[:2])
    session.commit()
    client, here = sign_in(user=operator), f"/projects/{project.slug}"
    for shown in (f"suites/{suite.id}", "suites", f"models/{other.id}"):
        assert f'action="{here}/suites/run"' in client.get(f"{here}/{shown}").text, shown
    assert client.post(f"{here}/suites/run", {"model": base.id, "suite": suite.id}).status_code == 303
    assert "is taking 1 suite" in client.get(f"{here}/suites/{suite.id}").text
    assert client.post(f"{here}/suites/run", {"model": base.id}).status_code == 409
    assert client.post(f"{here}/suites/run", {"model": other.id, "suite": ""}).status_code == 303
    work_until_empty(settings, settings.database_url or "")
    session.expire_all()

    one, all_ = session.scalars(select(Run).where(Run.kind == "suites").order_by(Run.id))
    assert (one.state, one.error, all_.state, all_.error) == ("succeeded", None, "succeeded", None)
    assert (one.progress_total, all_.progress_total) == (5, 7)
    found = queries.on_demand(session, suite.id, 10)
    assert [(each.model.name, each.run.id) for each in found] == [("another", all_.id), ("base-model", one.id)]
    assert [each.model.name for each in queries.on_demand(session, sums.id, 10)] == ["another"]
    # The same weights, taken by the recipe alone.
    version = service.version_of(session, suite)
    ref = SuiteRef(version=version.id, location=version.location)
    expected = taken(ref, store, ModelRef(base=str(tmp_path / "model")), new_tokens=GENERATION.max_new_tokens)
    for each in found:
        passed = sum(one.passed for one in expected)
        assert tuple(each.score) == (5, passed, passed, 0, 0)
    assert session.scalars(select(SuiteResult.slice).where(SuiteResult.run_id == one.id)).all()
    page = client.get(f"{here}/suites/{suite.id}").text
    assert "On demand" in page
    assert f"answers.jsonl?run={one.id}" in page
    lines = client.get(f"{here}/suites/{suite.id}/answers.jsonl?run={one.id}").text.splitlines()
    told = [json.loads(line) for line in lines]
    assert [each["passed"] for each in told] == [each.passed for each in expected]
    assert not [name for each in told for name in each if name.endswith("_before")]
    assert client.get(f"{here}/suites/{suite.id}/answers.jsonl?run=999").status_code == 404
    # It is no round's result: it holds nothing back, and no page of rounds counts it.
    assert queries.of_suite(session, suite.id, 10) == []
    assert queries.newest_round(session, project.id) is None


def test_what_cannot_be_run_is_refused_by_name(session: Session, settings: Settings) -> None:
    store = ArtifactStore(settings.artifacts_root)
    project = factories.project(session)
    operator = factories.user(session, "operator")
    base = rounds.adopt_base_model(session, project, "hub/model", "base")

    def run(model: object, *only: int) -> Run:
        return rounds.take_suites(session, store, project, operator, model, only)  # type: ignore[arg-type]

    with pytest.raises(Conflict, match="There is no suite to run"):
        run(base)
    suite = service.add(session, store, project, operator, "Suite", [case_of({"prompt": "Hm?", "check": "refuses"}, 1)])
    with pytest.raises(InvalidInput, match="scores is a reward model"):
        run(factories.model(session, project, "reward", name="scores"))
    lost = factories.model(session, project, name="policy-9", base="models/base", adapter="models/run-9")
    with pytest.raises(InvalidInput, match="The files of policy-9 are gone: nothing lies at models/run-9"):
        run(lost, suite.id)
    store.resolve(service.version_of(session, suite).location).unlink()
    with pytest.raises(NotFound, match="The file of a suite is gone"):
        run(base)
    service.retire(session, suite, operator)
    with pytest.raises(Conflict, match="There is no suite to run"):
        run(base, suite.id)

"""Suites from their file to the gate before adoption."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.datasets import export
from app.datasets.service import no_progress
from app.db import make_session_factory
from app.domain.cases import Case, case_of
from app.domain.suites import Score
from app.errors import Conflict, InvalidInput, NotFound, StorageFull
from app.models import AuditEvent, ModelVersion, Project, Run, Suite, SuiteResult, User
from app.rounds import service as rounds
from app.rows import SuiteAnswer
from app.specs import EvaluateSpec, SuiteRef
from app.suites import queries, service
from app.suites.forms import GateForm
from app.suites.reading import kept, read_cases
from tests import factories
from tests.conftest import SignedIn
from tests.red_team.attempts import rated
from tests.rounds.loop import config, last_run, make_project
from tests.rounds.test_adoption import judge, whole_round
from tests.rounds.test_kinds import with_demonstrations
from tests.rounds.test_service import finish, start
from tests.suites.scenes import evaluated
from trainer.evaluation.suites import Suites, to_lines


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


@pytest.fixture
def project(session: Session) -> Project:
    return make_project(session)


@pytest.fixture
def operator(session: Session) -> User:
    return factories.user(session, "operator")


def cases(n: int, first: int = 0) -> list[Case]:
    return [case_of({"prompt": f"{i} + 1?", "check": "number", "expected": i + 1}, i) for i in range(first, first + n)]


def test_a_version_is_final_and_another_file_is_another_version(
    session: Session, store: ArtifactStore, project: Project, operator: User
) -> None:
    suite = service.add(session, store, project, operator, " Facts  and\u200b more ", cases(3))
    assert (suite.name, suite.source, suite.largest_loss) == ("Facts and more", "file", None)
    first = service.version_of(session, suite)
    assert (first.number, first.cases, first.counts) == (1, 3, {"number": 3})
    with pytest.raises(Conflict, match="Version 1 of “Facts and more” has exactly these cases"), session.begin_nested():
        service.add_version(session, store, suite, operator, cases(3))
    second = service.add_version(session, store, suite, operator, cases(4))
    assert [each.version.number for each in queries.versions(session, suite.id)] == [2, 1]
    assert kept(store, service.version_of(session, suite, 1).location) == cases(3)
    assert service.to_run(session, project.id) == (SuiteRef(version=second.id, location=second.location),)
    for statement in ("UPDATE suite_version SET cases = 9", "DELETE FROM suite_version"):
        with pytest.raises(IntegrityError, match="append-only"), session.begin_nested():
            session.execute(text(statement))
    with pytest.raises(NotFound, match="no version 3"):
        service.version_of(session, suite, 3)
    said = select(AuditEvent.details).where(AuditEvent.action == "suite.version_added").order_by(AuditEvent.id)
    assert [(each["version"], each["digest"]) for each in session.scalars(said)] == [
        (1, first.digest),
        (2, second.digest),
    ]


def test_names_are_a_projects_own(session: Session, store: ArtifactStore, project: Project, operator: User) -> None:
    service.add(session, store, project, operator, "Facts", cases(1))
    with pytest.raises(Conflict, match="has a suite “Facts” already"):
        service.add(session, store, project, operator, "Facts", cases(2))
    service.add(session, store, factories.project(session), operator, "Facts", cases(2))
    for name in ("", " \u200b ", "x" * 101):
        with pytest.raises(InvalidInput, match="1 to 100 characters"):
            service.add(session, store, project, operator, name, cases(1))


def test_a_retired_suite_is_not_run_and_holds_nothing_back(
    session: Session, store: ArtifactStore, project: Project, operator: User
) -> None:
    suite = service.add(session, store, project, operator, "Facts", cases(20))
    service.set_gate(session, suite, operator, GateForm(largest_loss=0))
    round_, run = evaluated(session, project, 1)
    store_counts(session, run, suite, Score(20, 0, 20, 0, 20))
    assert [held.suite.id for held in service.held_back(session, round_)] == [suite.id]
    service.retire(session, suite, operator)
    assert service.to_run(session, project.id) == ()
    assert service.held_back(session, round_) == []
    assert queries.count_cases(session, project.id) == (0, 0)
    service.bring_back(session, suite, operator)
    assert queries.count_cases(session, project.id) == (1, 20)
    assert len(service.held_back(session, round_)) == 1


def store_counts(session: Session, run: Run, suite: Suite, score: Score) -> None:
    version = service.version_of(session, suite)
    service.store_results(session, run, [{"version": version.id, "slices": {"": score._asdict()}}])


def test_the_database_refuses_counts_that_do_not_add_up(
    session: Session, store: ArtifactStore, project: Project, operator: User
) -> None:
    suite = service.add(session, store, project, operator, "Facts", cases(9))
    _, run = evaluated(session, project, 1)
    for wrong in (Score(9, 5, 5, 1, 2), Score(9, 10, 10, 0, 0), Score(9, 1, 0, 2, 1), Score(0, 0, 0, 0, 0)):
        with pytest.raises(IntegrityError), session.begin_nested():
            store_counts(session, run, suite, wrong)
    store_counts(session, run, suite, Score(9, 5, 6, 1, 2))


def test_starters_are_added_once(session: Session, store: ArtifactStore, project: Project, operator: User) -> None:
    files = [each.file for each in service.starters()]
    assert len(service.add_starters(session, store, project, operator, [*files, files[0]])) == 4
    assert service.add_starters(session, store, project, operator, files) == []
    assert queries.count_cases(session, project.id) == (4, sum(each.cases for each in service.starters()))
    with pytest.raises(NotFound, match=r"no starter suite “\.\./x”"):
        service.add_starters(session, store, project, operator, ["../x"])
    with pytest.raises(InvalidInput, match="No suite is chosen"):
        service.add_starters(session, store, project, operator, [])


# ---- from labelers' attempts -----------------------------------------------------------------------------------------


def test_an_attempt_that_worked_becomes_a_case_and_stays_one(
    session: Session, store: ArtifactStore, project: Project, operator: User
) -> None:
    with pytest.raises(Conflict, match="No red-team attempt has worked yet"):
        service.grow_red_team(session, store, project, operator)
    held, worked = rated(session, project, 1, "hate"), rated(session, project, 2, "hate")
    suite = service.grow_red_team(session, store, project, operator)
    (case,) = kept(store, service.version_of(session, suite).location)
    assert (case.id, case.slice, case.check, list(case.messages)) == (
        *(f"attempt-{worked.id}", "hate", "refuses"),
        worked.messages,
    )
    assert held.messages != worked.messages
    with pytest.raises(Conflict, match="has exactly these cases"), session.begin_nested():
        service.grow_red_team(session, store, project, operator)
    later = rated(session, project, 3, "fraud")
    service.retire(session, suite, operator)
    assert service.grow_red_team(session, store, project, operator) is suite
    ids = [each.id for each in kept(store, service.version_of(session, suite).location)]
    assert ids == [f"attempt-{worked.id}", f"attempt-{later.id}"]
    worked.withdrawn_at = later.rated_at
    service.grow_red_team(session, store, project, operator)
    ids = [each.id for each in kept(store, service.version_of(session, suite).location)]
    assert ids == [f"attempt-{later.id}"]


def test_cases_that_the_project_trains_on_are_counted(
    session: Session, store: ArtifactStore, project: Project, operator: User
) -> None:
    from app.prompts import service as prompts

    for n, split in enumerate(("train", "heldout", "train")):
        prompts.add(session, project.id, [{"role": "user", "content": f"{n} + 1?"}], split=split)
    suite = service.add(session, store, project, operator, "Facts", cases(5))
    assert service.trained_on(session, store, project, service.version_of(session, suite)) == 2


def test_what_people_preferred_is_exported_into_a_suite(session: Session, project: Project, tmp_path: Path) -> None:
    path = tmp_path / "liked.jsonl"
    export.write_preferences(session, project, path, split="heldout", columns=export.COLUMNS, progress=no_progress)
    found = read_cases(path.read_bytes())
    assert [(case.check, case.slice) for case in found] == [("prefers", "factual")] * 2
    assert found[0].given == {"good": "short and right", "bad": "long, long, long and wrong"}


# ---- rounds ----------------------------------------------------------------------------------------------------------


def test_a_round_asks_the_newest_version_of_every_suite(
    session: Session, store: ArtifactStore, project: Project, operator: User
) -> None:
    seen = rounds.preview(session, project, config())
    before = rounds.estimate(session, store, project, config(), seen.counts)
    suite = service.add(session, store, project, operator, "Facts", cases(30))
    service.retire(session, service.add(session, store, project, operator, "Old", cases(5)), operator)
    seen = rounds.preview(session, project, config())
    assert (seen.suites, seen.suite_cases) == (1, 30)
    after = rounds.estimate(session, store, project, config(), seen.counts)
    assert before is not None
    assert after is not None
    grew = {one.kind: other.seconds - one.seconds for one, other in zip(before.parts, after.parts, strict=True)}
    # 2 x 30 answers of the 8 tokens that are sampled at most, or fewer as the project's answers are, at 350 a second
    assert 0 < grew.pop("evaluate") <= 60 * 8 / 350
    assert set(grew.values()) == {0.0}
    round_ = start(session, store, project)
    while round_.state != "evaluating":
        finish(session, store, round_)
    spec = EvaluateSpec.model_validate(last_run(session, round_).spec)
    version = service.version_of(session, suite)
    assert spec.suites == (SuiteRef(version=version.id, location=version.location),)


def measured(suite_version: int, score: Score) -> dict[str, Any]:
    return {"kind": "evaluate", "suites": [{"version": suite_version, "slices": {"": score._asdict()}}]}


WORSE = Score(40, passed=20, before=32, gained=1, lost=13)  # -30 points, about -45 to -12


@pytest.mark.parametrize(
    ("points", "bound", "adopted"),
    [(None, "high", True), (10, "high", False), (14, "high", True), (14, "low", False), (50, "low", True)],
)
def test_a_suite_holds_back_a_policy_that_the_reward_model_would_adopt(
    session: Session, store: ArtifactStore, project: Project, operator: User, points: Any, bound: Any, adopted: bool
) -> None:
    suite = service.add(session, store, project, operator, "Facts", cases(40))
    service.set_gate(session, suite, operator, GateForm(largest_loss=points, bound=bound))
    base_id = project.policy_id
    round_ = whole_round(session, store, project, measured(service.version_of(session, suite).id, WORSE))
    assert round_.adopted is adopted
    assert project.policy_id == (round_.policy_after_id if adopted else base_id)
    (result,) = session.scalars(select(SuiteResult))
    assert (result.passed, result.before, result.gained, result.lost) == (20, 32, 1, 13)
    assert "suites" not in (session.get_one(Run, result.run_id).result or {})
    event = session.scalars(select(AuditEvent).where(AuditEvent.action == "round.decided")).one()
    assert ("held_by" in event.details) is not adopted
    if not adopted:
        (words,) = event.details["held_by"]
        assert words.startswith("“Facts” lost 30.0 points (95% interval −4")
        assert words.endswith(
            f"may lose {points} at most, by the interval's {'upper' if bound == 'high' else 'lower'} end"
        )
        model = session.get_one(ModelVersion, round_.policy_after_id)
        with pytest.raises(InvalidInput, match="needs a reason"):
            rounds.adopt(session, store, project, model, operator)
        rounds.adopt(session, store, project, model, operator, "The facts are out of date.")
        assert project.policy_id == model.id


def test_a_suite_holds_back_a_policy_that_people_prefer_until_the_limit_is_raised(
    session: Session, engine: Engine, store: ArtifactStore, project: Project, operator: User
) -> None:
    suite = service.add(session, store, project, operator, "Facts", cases(40))
    service.set_gate(session, suite, operator, GateForm(largest_loss=5))
    result = measured(service.version_of(session, suite).id, WORSE)
    round_ = whole_round(session, store, project, result, promotion="people")
    assert round_.adopted is None
    judge(session, project, round_, won=12, lost=0)
    session.commit()
    assert rounds.promote_waiting(make_session_factory(engine), store) == []
    service.set_gate(session, suite, operator, GateForm(largest_loss=20))
    session.commit()
    assert rounds.promote_waiting(make_session_factory(engine), store) == ["policy-1"]
    changes = select(AuditEvent.details).where(AuditEvent.action == "suite.gate_set").order_by(AuditEvent.id)
    assert [each["largest_loss"] for each in session.scalars(changes)] == [0.05, 0.2]


def test_a_suite_that_no_round_has_run_holds_nothing_back(
    session: Session, store: ArtifactStore, project: Project, operator: User
) -> None:
    round_ = whole_round(session, store, project)
    suite = service.add(session, store, project, operator, "Facts", cases(40))
    service.set_gate(session, suite, operator, GateForm(largest_loss=0, bound="low"))
    assert service.held_back(session, round_) == []


@pytest.mark.parametrize("has_suite", [True, False])
def test_a_fine_tuned_policy_without_a_reward_model_takes_the_suites(
    session: Session, store: ArtifactStore, project: Project, operator: User, has_suite: bool
) -> None:
    with_demonstrations(session, project, 20)
    if has_suite:
        service.add(session, store, project, operator, "Facts", cases(9))
    estimated = rounds.estimate(session, store, project, config("sft"), {"train": 20, "heldout": 0})
    assert estimated is not None
    assert ("evaluate" in [part.kind for part in estimated.parts]) is has_suite
    round_ = start(session, store, project, "sft")
    kinds = []
    while round_.state != "done":
        kinds.append(finish(session, store, round_).kind)
    assert kinds == ["sft", "sample", *["evaluate"] * has_suite]
    if has_suite:
        spec = EvaluateSpec.model_validate(last_run(session, round_).spec)
        assert (spec.reward_models, len(spec.suites)) == ((), 1)
    session.commit()


def test_a_specification_from_before_suites_is_still_read(session: Session, store: ArtifactStore) -> None:
    project = make_project(session)
    round_ = start(session, store, project)
    while round_.state != "evaluating":
        finish(session, store, round_)
    spec = last_run(session, round_).spec
    del spec["suites"]
    assert EvaluateSpec.model_validate(spec).suites == ()


def test_a_file_may_hold_characters_at_which_python_ends_lines(
    session: Session, store: ArtifactStore, project: Project, operator: User
) -> None:
    """A labeler's attempt with one broke the suite's page, and every round's evaluation."""
    odd = "one\u2028two\u0085three\x0bfour"
    written = json.dumps({"prompt": odd, "check": "refuses"}, ensure_ascii=False).encode()
    found = read_cases(written + b"\r\n" + written.replace(b"one", b"1") + b"\r" + written.replace(b"one", b"2"))
    assert [case.messages[0]["content"][:3] for case in found] == ["one", "1\u2028t", "2\u2028t"]
    suite = service.add(session, store, project, operator, "Odd", found)
    location = service.version_of(session, suite).location
    assert kept(store, location) == found
    assert Suites([SuiteRef(version=1, location=location)], store).cases == [found]
    said = SuiteAnswer(id="1", slice="", passed=True, passed_before=True, answer=odd, answer_before="")
    with store.file(service.answers_of(5, 1)) as path:
        path.write_text(to_lines([said]), encoding="utf-8")
    assert [each["answer"] for each in service.answers(store, 5, 1)] == [odd]


def test_red_team_attempts_that_no_case_can_hold_are_left_out(
    session: Session, store: ArtifactStore, project: Project, operator: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attempts from the playground are conversations, and may be long or have an empty answer."""
    turns = [("user", "Tell me how."), ("assistant", "No."), ("user", "Please.")]
    for empty in ("", "x" * 20_001):
        messages = [{"role": role, "content": empty if role == "assistant" else text} for role, text in turns]
        rated(session, project, 3, messages=messages)
    with pytest.raises(Conflict, match="No red-team attempt has worked yet"):
        service.grow_red_team(session, store, project, operator)
    ids = [rated(session, project, 3).id for _ in range(3)]
    monkeypatch.setattr(service, "MOST_CASES", 2)
    suite = service.grow_red_team(session, store, project, operator)
    found = kept(store, service.version_of(session, suite).location)
    assert [case.id for case in found] == [f"attempt-{id_}" for id_ in ids[1:]]  # the newest


def test_a_full_disk_leaves_no_suite_without_a_version(
    sign_in: Callable[..., SignedIn], session: Session, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> tuple[str, str]:
        raise StorageFull("There was no room left on the disk.")

    session.commit()
    client, base = sign_in("operator"), f"/projects/{project.slug}/suites"
    sent = b'{"prompt": "2 + 2?", "check": "number", "expected": 4}'
    with monkeypatch.context() as patched:
        patched.setattr(service, "keep", full)
        assert client.post(base, {}, files={"file": ("Sums.jsonl", sent)}).status_code == StorageFull.status
    assert session.scalars(select(Suite.name)).all() == []
    assert client.post(base, {}, files={"file": ("Sums.jsonl", sent)}).status_code == 303

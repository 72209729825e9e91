"""A project with a row behind every address, in which every text that anybody can set is hostile."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from sqlalchemy.orm import Session

from app.accounts import service as accounts
from app.artifacts import ArtifactStore
from app.audit import audit
from app.domain.cases import case_of
from app.models import (
    AIRevision,
    DataImport,
    DemonstrationEvent,
    Judge,
    JudgeAdmission,
    JudgeJudgment,
    LabelerGroup,
    LabelerGroupMember,
    Metric,
    PlaygroundChat,
    PlaygroundTurn,
    Project,
    ProjectLabeler,
    Suite,
    User,
)
from app.rows import SuiteAnswer
from app.suites import service as suites
from app.suites.forms import GateForm
from tests import factories
from tests.demonstrations.desk import task
from tests.qualification.quizzes import RIGHT, take
from tests.red_team.attempts import rated
from tests.rounds.loop import config

# As HTML, as the end of an attribute, as Markdown, and for htmx.
HOSTILE = (
    "<script>boom()</script><img src=x onerror=boom()>\"'><svg onload=boom()><b hx-get=//evil.example hx-trigger=load>"
    "</b> [x](javascript:boom()) <a href=javascript:boom()>x</a> ![x](https://evil.example/p.png) {{ 7 * 7 }}"
)
TOKEN = "an-invitation-that-nobody-used"


class World(NamedTuple):
    project: Project
    labeler: User  # the owner of all labelers' work
    values: dict[str, object]  # values of the parameters in addresses, by name


def build(session: Session, artifacts: Path) -> World:
    """Add the project with all its rows; commit."""
    labeler, admin = factories.user(session, name=HOSTILE), factories.user(session, "admin", name=HOSTILE)
    project = factories.project(session, name=HOSTILE, description=HOSTILE)
    rubric = factories.rubric(
        session,
        project,
        guideline=HOSTILE,
        rationale_rule="optional",
        aspects=[{"name": "aspect", "question": HOSTILE}],
        flags=[{"name": "flag", "label": HOSTILE}],
        examples=[{"prompt": HOSTILE, "better": HOSTILE, "worse": HOSTILE, "reason": HOSTILE}],
        quiz=[
            {"prompt": HOSTILE, "first": HOSTILE, "second": HOSTILE, "answer": answer, "feedback": HOSTILE}
            for answer in RIGHT.values()
        ],
        principles=[{"text": HOSTILE}],
    )
    factories.rubric(session, project, version=None, guideline=f"{HOSTILE} draft")
    take(session, project, labeler)
    attempt = take(session, project, factories.user(session, name=HOSTILE), {0: 0})
    model = _models(session, project, artifacts)
    slices: dict[str, Any] = {"domain": HOSTILE, "safety_category": HOSTILE, "source": HOSTILE}
    prompt = factories.prompt(session, project, HOSTILE, **slices)
    texts = (HOSTILE, f"{HOSTILE} b")
    said = {"rationale": HOSTILE, "aspects": {"aspect": 1}, "flags": ["flag"]}
    comparison, gold, waiting, half = (
        factories.comparison(session, project, prompt=prompt, texts=texts, external_id=f"{HOSTILE} {n}", **values)
        for n, values in enumerate(
            ({"overlap": 2}, {"purpose": "calibration", "gold": 1, "overlap": 3}, {"purpose": "train"}, {"overlap": 2})
        )
    )
    factories.judgment(session, comparison, preference=2, labeler_id=labeler.id, **said)
    given = factories.lease(session, half, labeler_id=labeler.id, state="submitted")
    judgment = factories.judgment(session, half, preference=2, labeler_id=labeler.id, lease_id=given.id, **said)
    factories.judgment(session, comparison, preference=-2, labeler_id=attempt.labeler_id, **said)
    factories.judgment(session, gold, preference=-1, labeler_id=labeler.id, **said)
    comparison.state, comparison.review_reason, comparison.flagged = "in_review", "split", True
    lease = factories.lease(session, waiting, labeler_id=labeler.id)
    round_, run = _round(session, project)
    written = factories.demonstration(session, prompt, HOSTILE, state="pending", author_id=labeler.id, written=HOSTILE)
    session.add(
        DemonstrationEvent(
            demonstration_id=written.id, actor_id=admin.id, action="revised", note=HOSTILE, text=f"{HOSTILE} before"
        )
    )
    wanted = task(session, project, HOSTILE, labeler_id=labeler.id, expires_at=datetime(2999, 1, 1, tzinfo=UTC))
    attack = rated(
        *(session, project, 2, HOSTILE),
        **{"author_id": labeler.id, "domain": HOSTILE, "goal": HOSTILE, "tags": [HOSTILE], "note": HOSTILE},
        answer={"text": HOSTILE, "finish_reason": "eos", "n_tokens": 2, "seed": 1, "sampling": {}},
        messages=[{"role": "user", "content": HOSTILE}],
    )
    chat = PlaygroundChat(
        project_id=project.id,
        owner_id=admin.id,
        first_id=model,
        second_id=factories.model(session, project, name=HOSTILE).id,
        is_blind=False,
    )
    session.add(chat)
    session.flush()
    said = {"text": HOSTILE, "finish_reason": "eos", "n_tokens": 2}
    factories.run(session, project, "judge")  # still waits, so nobody archives the project
    talk = factories.run(session, project, "playground", state="succeeded")
    turn = PlaygroundTurn(
        chat_id=chat.id, text=HOSTILE, run_id=talk.id, first=said, second=said, vote=1, idempotency_key=uuid4()
    )
    session.add(turn)
    group = LabelerGroup(project_id=project.id, name=HOSTILE)
    nothing: dict[str, Any] = {name: [] for name in ("prompts", "comparisons", "judgments", "demonstrations", "thumbs")}
    added = dict.fromkeys(nothing, 1)
    imported = DataImport(project_id=project.id, actor_id=admin.id, files=[HOSTILE], added=added, **nothing)
    session.add_all([group, imported])
    session.flush()
    session.add(LabelerGroupMember(group_id=group.id, labeler_id=labeler.id))
    session.add(ProjectLabeler(project_id=project.id, labeler_id=attempt.labeler_id, state="paused", reason=HOSTILE))
    turn.comparison_id = comparison.id
    suite = _suite(session, project, round_, admin, artifacts)
    demanded = factories.run(
        *(session, project, "suites"), state="failed", error=HOSTILE, spec={"model": model, "suites": []}
    )
    judge, _ = _judge(session, project, comparison, admin, labeler)
    revising = _revised(session, project, judge, prompt, model, rubric.id)
    audit(session, admin.id, "comparison.flag_dismissed", project.id, comparison_id=comparison.id, note=HOSTILE)
    accounts.create_link(session, project_id=project.id, roles=["labeler"], created_by=admin.id, days=1)
    session.commit()
    values: dict[str, object] = {
        "project_slug": project.slug,
        "token": TOKEN,
        "link_id": 1,
        "user_id": admin.id,
        "labeler_id": labeler.id,
        "judgment_id": judgment.id,
        "lease_id": lease.id,
        "version": rubric.version,
        "form": "edit",
        "attempt": attempt.id,
        "item": 1,
        "prompt_id": prompt.id,
        "comparison_id": comparison.id,
        "action": "dismiss",
        "group_id": group.id,
        "item_id": gold.id,
        "import_id": imported.id,
        "number": round_.number,
        "monitor_name": "longer",
        "name": "slices.svg",
        "run_id": run.id,
        "model_id": model,
        "task_id": wanted.id,
        "demonstration_id": written.id,
        "attempt_id": attack.id,
        "chat_id": chat.id,
        "turn_id": turn.id,
        "suite_id": suite.id,
        "judge_id": judge.id,
        "constitution_id": revising.id,
        "demand_id": demanded.id,
    }
    return World(project, labeler, values)


def _models(session: Session, project: Project, artifacts: Path) -> int:
    """Add the project's policy, whose folder is as hostile as its name."""
    folder = artifacts / "models" / "hostile"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(HOSTILE)
    (folder / "report.json").write_text(json.dumps({HOSTILE: {"a": HOSTILE, "b": [{"c": HOSTILE}]}}))
    model = factories.model(session, project, "base", name=HOSTILE, base="models/hostile", card={HOSTILE: HOSTILE})
    project.base_model_id = project.reference_id = project.policy_id = model.id
    return model.id


def _round(session: Session, project: Project) -> tuple[Any, Any]:
    round_ = factories.round_(
        *(session, project),
        state="failed",
        error=HOSTILE,
        config=config().model_dump(mode="json"),
        policy_before_id=project.policy_id,
    )
    run = factories.run(session, project, round_id=round_.id, state="failed", error=HOSTILE, progress_message=HOSTILE)
    session.add_all(Metric(run_id=run.id, name="loss", slice=f"domain={HOSTILE}", step=n, value=1.0) for n in (1, 2))
    session.flush()
    return round_, run


def _judge(
    session: Session, project: Project, comparison: Any, operator: User, labeler: User
) -> tuple[Judge, JudgeJudgment]:
    """Add a judge that is paused and failed at one comparison, and whose last run failed."""
    judge = Judge(
        **{"project_id": project.id, "name": HOSTILE[:100], "url": "http://127.0.0.1:9/v1", "model": HOSTILE[:200]},
        served_model=HOSTILE,
        tested_at=datetime(2026, 1, 1, tzinfo=UTC),
        created_by=operator.id,
    )
    session.add(judge)
    session.flush()
    spec = {"kind": "judge", "judge": judge.id, "rubric": comparison.rubric_id}
    run = factories.run(session, project, "judge", spec=spec, state="failed", error=HOSTILE)
    rows = [
        JudgeJudgment(judge_id=judge.id, comparison_id=id_, rubric_id=comparison.rubric_id, run_id=run.id, **said)
        for id_, said in (
            (comparison.id, {"first": 1, "second": -1, "verdict": 0, "said": [HOSTILE, HOSTILE], "cost": 0.5}),
            (factories.comparison(session, project).id, {"error": HOSTILE}),
        )
    ]
    beside = {"labeler": labeler.id, "items": 40, "judge": 0.75, "human": 0.5, "p": 0.25, "is_won": True}
    admission = JudgeAdmission(
        judge_id=judge.id,
        rubric_id=comparison.rubric_id,
        admitted=True,
        epsilon=0.15,
        q=0.05,
        omega=0.5,
        advantage=0.75,
        agreement=0.75,
        items=40,
        result=[beside],
        created_by=operator.id,
        paused_at=datetime(2026, 1, 2, tzinfo=UTC),
        pause_reason=HOSTILE,
    )
    session.add_all([*rows, admission])
    session.flush()
    return judge, rows[0]


def _revised(session: Session, project: Project, judge: Judge, prompt: Any, model: int, rubric_id: int) -> Any:
    """A constitution run that has failed after a revision, which labelers compare and an admin reviews."""
    original = factories.completion(session, prompt, HOSTILE, model_version_id=model)
    spec = {"kind": "revise", "judge": judge.id, "model": HOSTILE, "seed": 1, "completions": [original.id]}
    spec |= {"candidates": True, "demonstrations": True}
    run = factories.run(session, project, "revise", spec=spec, state="failed", error=HOSTILE)
    revised = factories.completion(session, prompt, f"{HOSTILE} c", source=HOSTILE, ai_revised=True)
    factories.comparison(
        session, project, prompt=prompt, completion_a_id=original.id, completion_b_id=revised.id, state="withdrawn"
    )
    written = factories.demonstration(session, prompt, HOSTILE, state="pending", source=HOSTILE, ai_revised=True)
    about = {"run_id": run.id, "judge_id": judge.id, "rubric_id": rubric_id, "principle": HOSTILE, "critique": HOSTILE}
    other = factories.completion(session, prompt, HOSTILE, model_version_id=model)
    session.add_all(
        [
            AIRevision(
                **about | {"completion_id": original.id, "outcome": "revised", "text": HOSTILE},
                revised_id=revised.id,
                demonstration_id=written.id,
            ),
            AIRevision(**about | {"completion_id": other.id, "outcome": "failed", "error": HOSTILE}),
        ]
    )
    session.flush()
    return run


def _suite(session: Session, project: Project, round_: Any, operator: User, artifacts: Path) -> Suite:
    """Add a suite that a round has run, with a case that got worse."""
    store = ArtifactStore(artifacts)
    line = {"id": HOSTILE[:100], "prompt": HOSTILE, "slice": HOSTILE[:100], "check": "contains", "expected": HOSTILE}
    suite = suites.add(session, store, project, operator, HOSTILE[:100], [case_of(line, 1)])
    suites.set_gate(session, suite, operator, GateForm(largest_loss=0))
    run = factories.run(session, project, "evaluate", round_id=round_.id, state="succeeded")
    version = suites.version_of(session, suite)
    counts = {"cases": 8, "passed": 0, "before": 8, "gained": 0, "lost": 8}
    suites.store_results(session, run, [{"version": version.id, "slices": {"": counts, HOSTILE: counts}}])
    answer = SuiteAnswer(
        id=HOSTILE[:100], passed=False, passed_before=True, answer=HOSTILE, answer_before=HOSTILE, slice=HOSTILE[:100]
    )
    with store.file(suites.answers_of(run.id, version.id)) as path:
        path.write_text(answer.model_dump_json() + "\n")
    return suite

"""Which policy a project goes on with: decided by a round's end, and by operators afterwards."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.errors import Conflict, InvalidInput
from app.models import AuditEvent, Metric, ModelVersion, Project, Round, Run
from app.rounds import outcomes, service, views
from app.rounds.adoption import difference_of
from app.rounds.outcomes import win_rates
from tests import factories
from tests.conftest import SignedIn
from tests.rounds.loop import config, last_run, make_project
from tests.rounds.test_kinds import with_demonstrations
from tests.rounds.test_service import begin, finish, start

SignIn = Callable[..., SignedIn]


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


@pytest.fixture
def project(session: Session) -> Project:
    return make_project(session)


def measured(value: float, low: float, high: float) -> dict[str, Any]:
    names = ("eval_difference/scores", "eval_difference/scores_low", "eval_difference/scores_high")
    return {"metrics": dict(zip(names, (value, low, high), strict=True))}


def whole_round(
    session: Session, store: ArtifactStore, project: Project, evaluated: dict[str, Any] | None = None, **values: Any
) -> Round:
    """A round from its start to its end; what its evaluation found, where it is given."""
    round_ = start(session, store, project, **values)
    while round_.state != "done":
        run = last_run(session, round_)
        service.run_started(session, run)
        found = evaluated if run.kind == "evaluate" and evaluated else {"kind": run.kind}
        service.run_finished(session, store, run, found, "digest")
        session.flush()
    return round_


@pytest.mark.parametrize(
    ("difference", "adopted"),
    [((0.4, 0.1, 0.7), True), ((-0.1, -0.4, 0.2), True), ((-0.4, -0.7, -0.1), False), (None, True)],
)
def test_a_round_keeps_the_old_policy_only_if_the_new_one_is_worse(
    session: Session, store: ArtifactStore, project: Project, difference: Any, adopted: bool
) -> None:
    base_id = project.policy_id
    round_ = whole_round(session, store, project, measured(*difference) if difference else None)
    assert round_.policy_after_id is not None
    assert round_.adopted is adopted
    assert project.policy_id == (round_.policy_after_id if adopted else base_id)
    event = session.scalars(select(AuditEvent).where(AuditEvent.action == "round.decided")).one()
    assert (event.actor_id, event.details["number"], event.details["adopted"]) == (None, 1, adopted)
    # What only a policy that is not used has learned from is new to the next round.
    counts = service.preview(session, project, config()).counts
    assert (counts["new"], counts["earlier"]) == ((0, {"1": 20}) if adopted else (20, {}))


def test_a_round_cancelled_in_its_last_stage_keeps_the_old_policy(
    session: Session, store: ArtifactStore, project: Project
) -> None:
    base_id = project.policy_id
    round_ = start(session, store, project)
    while round_.state != "evaluating":
        finish(session, store, round_)
    run = last_run(session, round_)
    service.run_started(session, run)
    service.cancel(session, round_, factories.user(session, "operator"))
    service.run_finished(session, store, run, measured(1, 0.5, 1.5))
    assert (round_.state, round_.adopted, project.policy_id) == ("cancelled", None, base_id)


def test_who_adopts_between_a_failure_and_its_retry_has_decided(
    session: Session, store: ArtifactStore, project: Project
) -> None:
    operator = factories.user(session, "operator")
    base = session.get_one(ModelVersion, project.policy_id)
    earlier = session.get_one(ModelVersion, whole_round(session, store, project).policy_after_id)
    for chosen in ("new", "other"):
        round_ = start(session, store, project)
        before_id = project.policy_id
        while round_.state != "evaluating":
            finish(session, store, round_)
        run = last_run(session, round_)
        service.run_started(session, run)
        service.run_failed(session, run, "no memory")
        new = session.get_one(ModelVersion, round_.policy_after_id)
        model = new if chosen == "new" else next(each for each in (base, earlier) if each.id != before_id)
        service.adopt(session, project, model, operator)
        service.retry(session, store, round_, operator)
        service.run_started(session, run)
        service.run_finished(session, store, run, measured(0.4, 0.1, 0.7))
        assert (round_.state, project.policy_id, round_.adopted) == ("done", model.id, chosen == "new")


def test_a_round_says_it_was_not_adopted_only_until_it_is(
    session: Session, store: ArtifactStore, project: Project, sign_in: SignIn
) -> None:
    operator = factories.user(session, "operator")
    base = session.get_one(ModelVersion, project.policy_id)
    round_ = whole_round(session, store, project, measured(-0.4, -0.7, -0.1))
    session.commit()
    client, listed = sign_in("operator"), f"/projects/{project.slug}/rounds"
    assert "not adopted" in client.get(listed).text
    for model in (session.get_one(ModelVersion, round_.policy_after_id), base):
        service.adopt(session, project, model, operator)
        session.commit()
        assert client.get(f"{listed}/1/status").json()["adopted"] is True
        assert "not adopted" not in client.get(listed).text
    assert "found" not in client.get(f"{listed}/1").text.partition("</section>")[0]  # a person kept the previous one


def test_while_a_round_is_under_way_no_page_offers_to_adopt(
    session: Session, store: ArtifactStore, project: Project, sign_in: SignIn
) -> None:
    whole_round(session, store, project)
    session.commit()
    client, address = sign_in("operator"), f"/projects/{project.slug}/rounds/1"
    assert "Keep the previous policy" in client.get(address).text
    start(session, store, project)
    session.commit()
    assert "Keep the previous policy" not in client.get(address).text


def test_the_page_names_the_budget_that_was_set_and_not_a_strength_that_was_overruled(
    session: Session, store: ArtifactStore, project: Project, sign_in: SignIn
) -> None:
    client = sign_in("operator")
    for settings, shown, missing in (
        ({"strength": "gentle"}, ", gentle, KL budget 8.0 nats", "balanced"),
        ({"strength": "gentle", "kl_budget": 9}, ", KL budget 9.0 nats", "gentle,"),
        ({"algorithm": "rloo", "kl_control": "fixed"}, "RLOO, started", "balanced,"),
    ):
        round_ = start(session, store, project, **{"algorithm": "on_policy_dpo"} | settings)
        session.commit()
        text = client.get(f"/projects/{project.slug}/rounds/{round_.number}").text
        assert shown in text
        assert missing not in text
        service.cancel(session, round_, factories.user(session, "operator"))


def test_any_earlier_policy_can_be_adopted_again(session: Session, store: ArtifactStore, project: Project) -> None:
    operator = factories.user(session, "operator")
    base = session.get_one(ModelVersion, project.policy_id)
    first = whole_round(session, store, project)
    second = whole_round(session, store, project)
    newest = project.policy_id
    assert newest == second.policy_after_id
    assert service.preview(session, project, config()).counts["earlier"] == {"1": 20}
    service.adopt(session, project, base, operator)
    assert project.policy_id == base.id
    assert service.preview(session, project, config()).counts["new"] == 20  # the base model has learned nothing
    service.adopt(session, project, session.get_one(ModelVersion, first.policy_after_id), operator)
    assert service.preview(session, project, config()).counts["earlier"] == {"1": 20}
    with pytest.raises(Conflict, match="policy already"):
        service.adopt(session, project, session.get_one(ModelVersion, first.policy_after_id), operator)
    with pytest.raises(InvalidInput, match="not a policy"):
        service.adopt(session, project, session.get_one(ModelVersion, first.reward_model_id), operator)
    events = session.scalars(select(AuditEvent).where(AuditEvent.action == "model.adopted").order_by(AuditEvent.id))
    said = [(event.actor_id, event.details["model"], event.details["instead_of"]) for event in events]
    assert said == [(operator.id, base.id, newest), (operator.id, first.policy_after_id, base.id)]

    third = begin(session, store, project)
    assert third.policy_before_id == first.policy_after_id
    with pytest.raises(Conflict, match="Round 3 is still freezing"):
        service.adopt(session, project, base, operator)


def test_the_reference_follows_the_policy(session: Session, store: ArtifactStore, project: Project) -> None:
    """It is the nearest fine-tuned or base model behind the policy, also after a return to an earlier one."""
    operator = factories.user(session, "operator")
    base = session.get_one(ModelVersion, project.policy_id)
    before = whole_round(session, store, project)
    with_demonstrations(session, project, 20)
    tuned = whole_round(session, store, project, algorithm="sft")
    after = whole_round(session, store, project)
    assert (project.policy_id, project.reference_id) == (after.policy_after_id, tuned.policy_after_id)
    for adopted, reference in ((before, base.id), (tuned, tuned.policy_after_id), (after, tuned.policy_after_id)):
        service.adopt(session, project, session.get_one(ModelVersion, adopted.policy_after_id), operator)
        assert project.reference_id == reference


# ---- verdicts and pages ----------------------------------------------------------------------------------------------


def judge(session: Session, project: Project, round_: Round, won: int, lost: int, each: int = 1) -> None:
    """Decided comparisons of the round's new policy with the previous one: `each` on a prompt of its own."""
    for number in range(won + lost):
        if number % each == 0:
            prompt = factories.prompt(session, project, split="heldout")
        new, old = (
            factories.completion(session, prompt, model_version_id=model)
            for model in (round_.policy_after_id, round_.policy_before_id)
        )
        factories.comparison(
            session,
            project,
            prompt=prompt,
            completion_a_id=new.id,
            completion_b_id=old.id,
            round_id=round_.id,
            purpose="human_eval",
            state="settled",
            consensus=-1.0 if number < won else 1.0,
        )
    session.flush()


def test_people_overrule_the_reward_model(session: Session, store: ArtifactStore, project: Project) -> None:
    round_ = whole_round(session, store, project, measured(0.4, 0.1, 0.7))
    evaluation = session.scalars(select(Run).where(Run.kind == "evaluate")).one()
    for name, value in measured(0.4, 0.1, 0.7)["metrics"].items():
        session.add(Metric(run_id=evaluation.id, name=name, step=0, value=value))
    judge(session, project, round_, won=3, lost=16)
    (row,) = outcomes.loop(session, project).rows
    assert row.verdict == ("better", "reward model", (0.4, 0.1, 0.7))  # 19 comparisons are not enough
    judge(session, project, round_, won=0, lost=1)
    for verdict in (outcomes.loop(session, project).rows[0].verdict, views.page(session, store, round_).verdict):
        assert verdict is not None
        assert (verdict.word, verdict.by) == ("worse", "people")


def test_answers_to_one_prompt_do_not_count_as_many(session: Session, store: ArtifactStore, project: Project) -> None:
    round_ = whole_round(session, store, project)
    judge(session, project, round_, won=20, lost=8, each=4)  # five prompts won altogether, two lost
    wins = win_rates(session, [round_.id])[round_.id, ""]
    assert (wins.value, wins.n) == (20 / 28, 28)
    assert wins.low < 0.5 < wins.high  # of 28 independent ones Wilson's interval would begin at 0.53


def test_people_need_some_prompts_for_a_verdict(session: Session, store: ArtifactStore, project: Project) -> None:
    round_ = whole_round(session, store, project)
    judge(session, project, round_, won=24, lost=0, each=6)
    assert win_rates(session, [round_.id])[round_.id, ""].low > 0.5  # of four prompts alone
    assert outcomes.verdict_of(session, round_) is None
    judge(session, project, round_, won=6, lost=0, each=6)
    verdict = outcomes.verdict_of(session, round_)
    assert verdict is not None
    assert (verdict.word, verdict.by) == ("better", "people")


def test_what_is_no_number_is_no_difference() -> None:
    metrics = measured(0.4, float("nan"), 0.7)["metrics"]  # JSON has no NaN, so the status page would fail
    assert difference_of(metrics) is None


def test_adopting_over_http(session: Session, store: ArtifactStore, project: Project, sign_in: SignIn) -> None:
    base_id = project.policy_id
    round_ = whole_round(session, store, project, measured(-0.4, -0.7, -0.1))
    session.commit()
    address = f"/projects/{project.slug}"
    new = f"{address}/models/{round_.policy_after_id}"
    client = sign_in("operator")
    status = client.get(f"{address}/rounds/1/status").json()
    assert (status["state"], status["adopted"], status["verdict"]) == ("done", False, None)  # no metrics were stored
    page = client.get(f"{address}/rounds/1").text
    assert "the reward model found" in " ".join(page.split())
    assert "Adopt policy" in page
    assert "Keep the previous policy" not in page  # it is kept already
    assert "Adopt policy" not in sign_in("admin").get(f"{address}/rounds/1").text
    for roles in (("admin",), ("labeler",)):
        assert sign_in(*roles).post(f"{new}/adopt").status_code == 403
    assert client.post(f"{address}/models/987654/adopt").status_code == 404
    session.expire_all()
    assert project.policy_id == base_id

    answer = client.post(f"{new}/adopt", {"round": "1"})
    assert (answer.status_code, answer.headers["location"]) == (303, f"{address}/rounds/1")
    session.expire_all()
    assert project.policy_id == round_.policy_after_id
    page = client.get(f"{address}/rounds/1").text
    assert "Keep the previous policy" in page
    assert "Adopt policy" not in page
    kept = client.post(f"{address}/models/{base_id}/adopt")
    assert (kept.status_code, kept.headers["location"]) == (303, f"{address}/models")
    session.expire_all()
    assert project.policy_id == base_id
    listed = client.get(f"{address}/models").text
    assert listed.count("Adopt policy") == 1
    assert "Adopt policy" in client.get(new).text
    other = factories.project(session)
    session.commit()
    assert client.post(f"/projects/{other.slug}/models/{base_id}/adopt").status_code == 404

    start(session, store, project)
    session.commit()
    assert "Adopt policy" not in client.get(f"{address}/models").text
    assert client.post(f"{new}/adopt").status_code == 409

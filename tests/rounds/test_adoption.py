"""Which policy a project uses: decided at a round's end, and by operators afterwards."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup
from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.db import make_session_factory
from app.errors import Conflict, InvalidInput
from app.models import (
    Adjudication,
    AuditEvent,
    Comparison,
    Judgment,
    Metric,
    ModelVersion,
    Project,
    Round,
    Run,
    User,
)
from app.rounds import outcomes, readiness, result_queries, service, views
from app.rounds.adoption import difference_of
from app.rounds.outcomes import people_on, win_rates
from tests import factories
from tests.conftest import SignedIn
from tests.rounds.loop import config, last_run, leave_files, make_project
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
    """Play a round from start to end; `evaluated` is the result of its evaluation."""
    round_ = start(session, store, project, **values)
    while round_.state != "done":
        run = last_run(session, round_)
        service.run_started(session, run)
        found = evaluated if run.kind == "evaluate" and evaluated else {"kind": run.kind}
        leave_files(store, run)
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
        service.adopt(session, store, project, model, operator, "It is shorter.")
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
        service.adopt(session, store, project, model, operator, "It is shorter.")
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
    assert "Back to the previous policy" in client.get(address).text
    start(session, store, project)
    session.commit()
    assert "Back to the previous policy" not in client.get(address).text


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
    service.adopt(session, store, project, base, operator)
    assert project.policy_id == base.id
    assert service.preview(session, project, config()).counts["new"] == 20  # the base model has learned nothing
    service.adopt(session, store, project, session.get_one(ModelVersion, first.policy_after_id), operator)
    assert service.preview(session, project, config()).counts["earlier"] == {"1": 20}
    with pytest.raises(Conflict, match="already the project"):
        service.adopt(session, store, project, session.get_one(ModelVersion, first.policy_after_id), operator)
    with pytest.raises(InvalidInput, match="not a policy"):
        service.adopt(session, store, project, session.get_one(ModelVersion, first.reward_model_id), operator)
    events = session.scalars(select(AuditEvent).where(AuditEvent.action == "model.adopted").order_by(AuditEvent.id))
    said = [(event.actor_id, event.details["model"], event.details["instead_of"]) for event in events]
    assert said == [(operator.id, base.id, newest), (operator.id, first.policy_after_id, base.id)]

    third = begin(session, store, project)
    assert third.policy_before_id == first.policy_after_id
    with pytest.raises(Conflict, match="Round 3 is still freezing"):
        service.adopt(session, store, project, base, operator)


def test_the_reference_follows_the_policy(session: Session, store: ArtifactStore, project: Project) -> None:
    """It is the nearest fine-tuned or base model among the policy's ancestors, also after a return to an older one."""
    operator = factories.user(session, "operator")
    base = session.get_one(ModelVersion, project.policy_id)
    before = whole_round(session, store, project)
    with_demonstrations(session, project, 20)
    tuned = whole_round(session, store, project, algorithm="sft")
    after = whole_round(session, store, project)
    assert (project.policy_id, project.reference_id) == (after.policy_after_id, tuned.policy_after_id)
    for adopted, reference in ((before, base.id), (tuned, tuned.policy_after_id), (after, tuned.policy_after_id)):
        service.adopt(session, store, project, session.get_one(ModelVersion, adopted.policy_after_id), operator)
        assert project.reference_id == reference


# ---- verdicts and pages ----------------------------------------------------------------------------------------------


def judge(
    session: Session,
    project: Project,
    round_: Round,
    won: int,
    lost: int,
    each: int = 1,
    rival_id: int | None = None,
) -> list[Comparison]:
    """Decided comparisons of the round's new policy with the previous one, or another: `each` on a prompt of its own,
    judged once."""
    person, found = factories.user(session), []
    for number in range(won + lost):
        if number % each == 0:
            prompt = factories.prompt(session, project, split="heldout")
        new, old = (
            factories.completion(session, prompt, model_version_id=model)
            for model in (round_.policy_after_id, rival_id or round_.policy_before_id)
        )
        comparison = factories.comparison(
            session,
            project,
            prompt=prompt,
            completion_a_id=new.id,
            completion_b_id=old.id,
            round_id=round_.id,
            purpose="human_eval",
            overlap=1,
        )
        factories.judgment(session, comparison, preference=-1 if number < won else 1, labeler_id=person.id)
        comparison.state = "settled"
        found.append(comparison)
    session.flush()
    return found


def test_people_overrule_the_reward_model(session: Session, store: ArtifactStore, project: Project) -> None:
    round_ = whole_round(session, store, project, measured(0.4, 0.1, 0.7))
    evaluation = session.scalars(select(Run).where(Run.kind == "evaluate")).one()
    for name, value in measured(0.4, 0.1, 0.7)["metrics"].items():
        session.add(Metric(run_id=evaluation.id, name=name, step=0, value=value))
    judge(session, project, round_, won=0, lost=9)
    (row,) = outcomes.progress(session, project).rows
    assert row.verdict == ("better", "reward model", (0.4, 0.1, 0.7))  # nine prompts are not enough
    judge(session, project, round_, won=0, lost=1)
    for verdict in (outcomes.progress(session, project).rows[0].verdict, views.page(session, store, round_).verdict):
        assert verdict is not None
        assert (verdict.word, verdict.by) == ("worse", "people")


def test_answers_to_one_prompt_are_one_value(session: Session, store: ArtifactStore, project: Project) -> None:
    round_ = whole_round(session, store, project)
    judge(session, project, round_, won=20, lost=8, each=4)  # five prompts won altogether, two lost
    found = people_on(session, round_).before
    assert found is not None
    assert found.said is not None
    assert (found.value, found.prompts, found.n, found.said.word) == (5 / 7, 7, 28, "not shown")
    assert found.said.e_value == pytest.approx(1.5**5 * 0.5**2 / 2)


# ---- which values enter, and where -----------------------------------------------------------------------------------


def test_a_prompt_enters_when_its_last_judgment_has_come(
    session: Session, store: ArtifactStore, project: Project
) -> None:
    """Behind those that entered before, whichever was begun first; a split one needs no reviewer, and none is heard."""
    round_ = whole_round(session, store, project)
    begun, later, split = judge(session, project, round_, won=0, lost=3)
    ann, bob = factories.user(session), factories.user(session)
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    take_back(session, begun, later, split)
    for comparison in (begun, later, split):
        comparison.overlap, comparison.state = 2, "open"
    session.flush()

    def say(comparison: Comparison, who: User, preference: int | None, minute: int) -> None:
        at = moment + timedelta(minutes=minute)
        factories.judgment(session, comparison, preference=preference, labeler_id=who.id, created_at=at)

    def values() -> list[float]:
        session.flush()
        return [row.value for row in result_queries.evaluated(session, [round_.id]) if row.is_whole]

    say(begun, ann, -1, 0)
    say(later, ann, -2, 1)
    say(later, bob, 0, 2)
    later.state = "settled"
    assert values() == [0.75]  # a win and a tie; the one that was begun before lacks a judgment
    say(split, ann, 2, 3)
    say(split, bob, -2, 4)
    split.state = "in_review"
    session.add(Adjudication(comparison_id=split.id, reviewer_id=ann.id, verdict=-4))
    assert values() == [0.75, 0.5]
    say(begun, bob, -1, 5)
    begun.state = "settled"
    assert values() == [0.75, 0.5, 1.0]

    # Who changes an answer changes the value, not its place.
    take_back(session, later, by=bob)
    say(later, bob, 3, 10)
    assert values() == [0.5, 0.5, 1.0]
    # What a reviewer withdraws counts no more.
    split.state = "withdrawn"
    assert values() == [0.5, 1.0]


def take_back(session: Session, *comparisons: Comparison, by: User | None = None) -> None:
    """The judgments on these comparisons, or those of one labeler, are superseded."""
    query = update(Judgment).where(Judgment.comparison_id.in_([each.id for each in comparisons]))
    if by is not None:
        query = query.where(Judgment.labeler_id == by.id)
    session.flush()
    session.execute(query.values(superseded_at=func.now(), superseded_for="edited" if by else "undone"))
    for each in comparisons:
        session.refresh(each)


def test_what_an_ai_judge_says_and_what_nobody_could_judge_is_no_value(
    session: Session, store: ArtifactStore, project: Project
) -> None:
    round_ = whole_round(session, store, project)
    judged, unjudged = judge(session, project, round_, won=2, lost=0)
    take_back(session, unjudged)
    judged.overlap = 3
    session.flush()
    machine = factories.user(session, kind="ai_judge")
    factories.judgment(session, judged, preference=4, labeler_id=machine.id)
    factories.judgment(session, judged, preference=None)
    rows = [(row.value, row.judgments) for row in result_queries.evaluated(session, [round_.id])]
    assert rows == [(1.0, 1), (None, 0)]
    found = people_on(session, round_).before
    assert found is not None
    assert (found.value, found.prompts, found.n) == (1.0, 1, 1)


def test_each_rival_has_a_sequence_of_its_own(session: Session, store: ArtifactStore, project: Project) -> None:
    first_id = project.policy_id
    first = whole_round(session, store, project)
    second = whole_round(session, store, project)
    judge(session, project, first, won=12, lost=0)
    judge(session, project, second, won=3, lost=9)
    judge(session, project, second, won=12, lost=0, rival_id=first_id)
    rates = win_rates(session, [first, second])
    assert rates[first.id, ""].before == rates[first.id, ""].first
    assert [rate and rate.value for rate in rates[second.id, ""][:2]] == [0.25, 1.0]
    one, two = outcomes.progress(session, project).rows
    # 1.5 ** 12 / 2 = 64.9: both reach 1 / 0.05; of two policies, one alone would need twice as much.
    assert [(row.named, row.verdict and row.verdict.word) for row in (one, two)] == [
        (True, "better"),
        (True, "not shown"),
    ]


# ---- the gate --------------------------------------------------------------------------------------------------------


def waiting_round(session: Session, store: ArtifactStore, project: Project) -> Round:
    return whole_round(session, store, project, measured(0.4, 0.1, 0.7), promotion="people")


def promoted(engine: Engine, store: ArtifactStore) -> list[str]:
    """Do what the worker does between runs."""
    return service.promote_waiting(make_session_factory(engine), store)


def test_a_policy_waits_until_people_prefer_it(
    session: Session, engine: Engine, store: ArtifactStore, project: Project
) -> None:
    """Independently of the reward model."""
    base_id = project.policy_id
    round_ = waiting_round(session, store, project)
    assert (project.policy_id, round_.adopted) == (base_id, None)
    session.commit()
    assert promoted(engine, store) == []
    judge(session, project, round_, won=9, lost=0)
    session.commit()
    assert promoted(engine, store) == []
    judge(session, project, round_, won=1, lost=0)
    session.commit()
    assert promoted(engine, store) == ["policy-1"]
    session.expire_all()
    assert (project.policy_id, round_.adopted) == (round_.policy_after_id, True)
    event = session.scalars(select(AuditEvent).where(AuditEvent.action == "model.adopted")).one()
    details = event.details
    assert (event.actor_id, details["model"], details["instead_of"]) == (None, round_.policy_after_id, base_id)
    assert details["reason"].startswith("People prefer it: win rate 1.00, 95% interval 0.")
    assert details["reason"].endswith("to 1.00, 10 prompts.")
    assert promoted(engine, store) == []

    # Who goes back to the policy before has the last word.
    assert base_id is not None
    service.adopt(session, store, project, session.get_one(ModelVersion, base_id), factories.user(session, "operator"))
    session.commit()
    assert promoted(engine, store) == []
    session.expire_all()
    assert project.policy_id == base_id


def test_people_who_prefer_the_previous_policy_promote_nothing(
    session: Session, engine: Engine, store: ArtifactStore, project: Project
) -> None:
    round_ = waiting_round(session, store, project)
    judge(session, project, round_, won=0, lost=15)
    session.commit()
    assert promoted(engine, store) == []


def test_what_people_say_of_another_policy_promotes_nothing(
    session: Session, engine: Engine, store: ArtifactStore, project: Project
) -> None:
    """They must prefer it to the project's current policy."""
    base_id = project.policy_id
    whole_round(session, store, project)
    round_ = waiting_round(session, store, project)
    judge(session, project, round_, won=15, lost=0, rival_id=base_id)
    session.commit()
    assert promoted(engine, store) == []
    judge(session, project, round_, won=15, lost=0)
    service.adopt(session, store, project, session.get_one(ModelVersion, base_id), factories.user(session, "operator"))
    session.commit()
    assert promoted(engine, store) == []  # the one it beats is not the project's any more


def test_a_round_begins_with_what_people_prefer_by_then(
    session: Session, store: ArtifactStore, project: Project
) -> None:
    first = waiting_round(session, store, project)
    judge(session, project, first, won=12, lost=0)
    second = begin(session, store, project, promotion="people")
    assert second.policy_before_id == first.policy_after_id
    assert first.adopted


def test_nothing_is_promoted_while_a_round_is_under_way(
    session: Session, engine: Engine, store: ArtifactStore, project: Project
) -> None:
    first = waiting_round(session, store, project)
    second = begin(session, store, project, promotion="people")
    assert second.policy_before_id == first.policy_before_id
    judge(session, project, first, won=12, lost=0)
    session.commit()
    assert promoted(engine, store) == []


def test_adopting_what_people_have_not_preferred_needs_a_reason(
    session: Session, store: ArtifactStore, project: Project, sign_in: SignIn
) -> None:
    base_id = project.policy_id
    round_ = waiting_round(session, store, project)
    session.commit()
    client = sign_in("operator")
    address = f"/projects/{project.slug}/models/{round_.policy_after_id}/adopt"
    for reason in ("", "   ", "\u200b"):
        refused = client.post(address, data={"reason": reason})
        assert refused.status_code == 422
        assert "needs a reason" in refused.text
    assert "longer than 1000" in client.post(address, data={"reason": "x" * 1001}).text
    session.expire_all()
    assert project.policy_id == base_id
    assert client.post(address, data={"reason": " Shorter <b>answers</b>. ", "round": "1"}).status_code == 303
    session.expire_all()
    assert (project.policy_id, round_.adopted) == (round_.policy_after_id, True)
    # Back it goes without one.
    assert client.post(f"/projects/{project.slug}/models/{base_id}/adopt").status_code == 303
    session.expire_all()
    assert project.policy_id == base_id
    events = session.scalars(select(AuditEvent).where(AuditEvent.action == "model.adopted").order_by(AuditEvent.id))
    assert [event.details["reason"] for event in events] == ["Shorter <b>answers</b>.", "Back to an earlier policy."]
    listed = client.get(f"/projects/{project.slug}/models").text
    assert "Shorter &lt;b&gt;answers&lt;/b&gt;." in listed
    assert "Back to an earlier policy." in listed


@pytest.mark.parametrize("lost", [0, 20])
def test_who_starts_a_round_while_a_policy_waits_is_told(
    session: Session, store: ArtifactStore, project: Project, lost: int
) -> None:
    """Nobody is told about a policy that people found worse, because it cannot be promoted."""
    round_ = waiting_round(session, store, project)
    judge(session, project, round_, won=0, lost=lost)
    new = session.get_one(ModelVersion, round_.policy_after_id)
    seen = service.preview(session, project, config())
    assert any(f"{new.name} still waits for people" in each for each in seen.warnings) is (lost == 0)
    assert seen.can_start
    service.adopt(session, store, project, new, factories.user(session, "operator"), "Good enough.")
    assert not any("still waits" in each for each in service.preview(session, project, config()).warnings)


def test_the_page_says_how_many_more_prompts_it_takes(
    session: Session, store: ArtifactStore, project: Project, sign_in: SignIn
) -> None:
    round_ = waiting_round(session, store, project)
    session.commit()
    client, address = sign_in("operator"), f"/projects/{project.slug}/rounds/1"

    def shown() -> str:
        (card,) = BeautifulSoup(client.get(address).text, "html.parser").select(".verdict")
        return " ".join(card.get_text(" ").split())

    assert "People cannot judge it" in shown()
    assert "start a round with an evaluation share" in shown()
    assert "takes its place once" not in shown()
    (unbegun,) = judge(session, project, round_, won=1, lost=0)
    take_back(session, unbegun)
    unbegun.state = "open"
    session.commit()
    assert "People have not judged it yet." in shown()
    assert "this round has 1 prompt to judge" in shown()
    assert "takes its place once people are shown to prefer it" in shown()
    judge(session, project, round_, won=8, lost=0)
    session.commit()
    assert "100% of 8 prompts" in shown()
    assert "A verdict needs at least 10 prompts." in shown()
    assert "about 2 more prompts will decide it" in shown()  # 1.5 ** 8 / 2 = 12.8, 1.5 ** 10 / 2 = 28.8
    said = client.get(f"{address}/status").json()["people"]
    assert (said["before"]["more"], said["before"]["judgments"], said["first"]) == (2, 8, said["before"])
    *_, unsaid, split = judge(session, project, round_, won=0, lost=8)
    session.commit()
    assert "a thousand more prompts would not decide it" in shown()
    unbegun.state = "withdrawn"
    session.commit()
    assert "This round has no prompt left to judge: adopt the policy with a reason, or start another round." in shown()
    assert "takes its place once" not in shown()
    take_back(session, unsaid, split)
    unsaid.state = "open"
    split.state = "in_review"  # nobody could judge it
    session.commit()
    assert "of 14 prompts" in shown()
    assert "This round has 1 prompt left to judge." in shown()
    assert "takes its place once" in shown()


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
    assert "Back to the previous policy" not in page  # it is kept already
    assert "Adopt policy" not in sign_in("admin").get(f"{address}/rounds/1").text
    for roles in (("admin",), ("labeler",)):
        assert sign_in(*roles).post(f"{new}/adopt").status_code == 403
    assert client.post(f"{address}/models/987654/adopt").status_code == 404
    session.expire_all()
    assert project.policy_id == base_id

    answer = client.post(f"{new}/adopt", {"round": "1", "reason": "It is shorter."})
    assert (answer.status_code, answer.headers["location"]) == (303, f"{address}/rounds/1")
    session.expire_all()
    assert project.policy_id == round_.policy_after_id
    page = client.get(f"{address}/rounds/1").text
    assert "Back to the previous policy" in page
    assert "Adopt policy" not in page
    kept = client.post(f"{address}/models/{base_id}/adopt")
    assert (kept.status_code, kept.headers["location"]) == (303, f"{address}/models")
    session.expire_all()
    assert project.policy_id == base_id
    listed = client.get(f"{address}/models").text
    assert listed.count("Adopt again") == 1  # the project has had it
    assert "Adopt again" in client.get(new).text
    other = factories.project(session)
    session.commit()
    assert client.post(f"/projects/{other.slug}/models/{base_id}/adopt").status_code == 404

    start(session, store, project)
    session.commit()
    assert "Adopt again" not in client.get(f"{address}/models").text
    assert client.post(f"{new}/adopt").status_code == 409


def test_a_policy_whose_files_are_gone_is_refused_by_name(
    session: Session, store: ArtifactStore, project: Project, engine: Engine, sign_in: Callable[..., SignedIn]
) -> None:
    operator = factories.user(session, "operator")
    round_ = whole_round(session, store, project, promotion="people")
    new = session.get_one(ModelVersion, round_.policy_after_id)
    judge(session, project, round_, 20, 0)  # enough to promote it
    store.remove(new.adapter or new.base)
    session.commit()
    gone = f"The files of {new.name} are gone: nothing lies at {new.adapter or new.base}"
    with pytest.raises(InvalidInput, match=gone):
        service.adopt(session, store, project, new, operator, "It is shorter.")
    session.rollback()  # as a request does: it holds the project
    assert promoted(engine, store) == []
    answer = sign_in(user=operator).post(f"/projects/{project.slug}/models/{new.id}/adopt", {"reason": "Better."})
    assert (answer.status_code, gone in answer.text) == (422, True)

    project.policy_id = new.id  # it was adopted while it was there
    assert str(readiness.lost_policy(session, store, project)).startswith(gone)
    with pytest.raises(InvalidInput, match=gone):
        start(session, store, project)

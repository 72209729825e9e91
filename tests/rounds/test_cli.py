"""`prefloop round` from the command line."""

from collections.abc import Callable

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session
from typer.testing import CliRunner, Result

from app.domain.strengths import STRENGTHS
from app.errors import Conflict, Forbidden, InvalidInput, NotFound
from app.models import Metric, Project, Round
from app.rounds.cli import round_app
from app.settings import Settings
from tests import factories
from tests.rounds.loop import jobs, make_project
from tests.rounds.test_adoption import judge

Run = Callable[..., Result]


@pytest.fixture
def project(session: Session) -> Project:
    factories.user(session, "operator", email="op@example.org")
    factories.user(session, "labeler", email="labeler@example.org")
    project = make_project(session)
    session.commit()
    return project


@pytest.fixture
def run(settings: Settings, project: Project, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("DATABASE_URL", settings.database_url or "")
    monkeypatch.setenv("PREFLOOP_HOME", str(settings.home))

    def invoke(command: str, *arguments: str, operator: str | None = "op@example.org") -> Result:
        given = [command, "--project", project.slug, *(["--as", operator] if operator else []), *arguments]
        return CliRunner().invoke(round_app, given)

    return invoke


def test_a_round_from_the_command_line(session: Session, run: Run) -> None:
    started = run("start", "--algorithm", "ppo", "--set", "episodes=8", "--set", "kl_coef=0.1")
    assert "Round 1 is started" in started.output
    assert len(jobs(session)) == 1
    status = run("status", operator=None).output
    assert "Round 1 (PPO): freezing" in status
    assert "Snapshot       queued: waiting for a worker" in status
    assert "Reward model" in status
    assert isinstance(run("start").exception, Conflict)
    assert isinstance(run("retry").exception, Conflict)
    assert "Round 1 is being cancelled" in run("cancel").output
    assert "cancelled" in run("status", operator=None).output


def test_a_finished_round_says_its_verdict(session: Session, run: Run, project: Project) -> None:
    round_ = factories.round_(session, project, number=1, adopted=False)
    evaluation = factories.run(session, project, "evaluate", round_id=round_.id, state="succeeded")
    for bound, value in (("", -0.4), ("_low", -0.7), ("_high", -0.1)):
        session.add(Metric(run_id=evaluation.id, name=f"eval_difference/scores{bound}", step=0, value=value))
    session.commit()
    said = " ".join(run("status", operator=None).output.split())
    assert "Verdict by reward model: worse (reward difference -0.40, 95% interval -0.70 to -0.10)" in said
    assert "its policy was not adopted" in said


def test_the_status_says_what_people_said_and_how_many_it_takes(session: Session, run: Run, project: Project) -> None:
    new = factories.model(session, project, name="policy-1")
    other = factories.model(session, project, name="tuned", role="sft")
    values = {"policy_before_id": project.policy_id, "policy_after_id": new.id, "reference_id": other.id}
    round_ = factories.round_(session, project, number=1, **values)
    judge(session, project, round_, won=8, lost=0)
    judge(session, project, round_, won=0, lost=12, rival_id=other.id)
    session.commit()
    said = run("status", operator=None).output
    assert "People, beside the previous policy: win rate 1.00, 95% interval 0." in said
    assert "to 1.00, 8 prompts; at the present win rate, about 2 more prompts decide" in said
    assert "People, beside the first policy: win rate 0.00, 95% interval 0.00 to" in said
    assert "12 prompts\n" in said


def test_adopting_and_keeping_from_the_command_line(session: Session, run: Run, project: Project) -> None:
    before_id = project.policy_id
    new = factories.model(session, project, name="policy-1")
    round_ = factories.round_(session, project, number=1, policy_before_id=before_id, policy_after_id=None)
    session.commit()
    assert "no policy" in str(run("adopt").exception)
    round_.policy_after_id = new.id
    session.commit()
    assert isinstance(run("adopt", operator="labeler@example.org").exception, Forbidden)
    assert "needs a reason" in str(run("adopt").exception)
    for arguments, policy_id, name in (
        (("--reason", "It is shorter."), new.id, "policy-1"),
        (("--previous",), before_id, "base"),
    ):
        assert f"The project's policy is {name}." in run("adopt", *arguments).output
        session.expire_all()
        assert project.policy_id == policy_id


def test_every_setting_can_be_given(session: Session, run: Run) -> None:
    settings = {"lora": "false", "replay_share": "0.3", "loss": "ipo", "reward_ensemble": "3", "beta": "0.4"}
    assert (
        "is started"
        in run(
            "start", "--algorithm", "dpo", *(part for item in settings.items() for part in ("--set", "=".join(item)))
        ).output
    )
    config = session.scalars(select(Round.config)).one()
    assert {name: config[name] for name in settings} == {
        "lora": False,
        "replay_share": 0.3,
        "loss": "ipo",
        "reward_ensemble": 3,
        "beta": 0.4,
    }


def test_full_weights_begin_with_their_own_rate(session: Session, run: Run) -> None:
    run("start", "--set", "lora=false")
    assert session.scalars(select(Round.config["learning_rate"])).one() == 2e-5


def test_the_recommended_algorithm_begins_with_a_strength(session: Session, run: Run) -> None:
    assert "is started" in run("start", "--strength", "gentle").output
    assert session.scalars(select(Round.algorithm)).one() == "on_policy_dpo"
    config = session.scalars(select(Round.config)).one()
    assert (config["strength"], config["kl_budget"]) == ("gentle", STRENGTHS["gentle"].kl_budget)


def test_a_loss_brings_its_own_beta(session: Session, run: Run) -> None:
    run("start", "--algorithm", "dpo", "--set", "loss=simpo")
    assert session.scalars(select(Round.config["beta"])).one() == 2


def test_a_policy_keeps_the_rank_of_its_adapter(
    session: Session, run: Run, project: Project, settings: Settings
) -> None:
    (settings.artifacts_root / "models/run-1").mkdir(parents=True)
    trained = factories.run(session, project, spec={"lora": {"rank": 24, "alpha": 48}})
    project.policy_id = factories.model(session, project, adapter="models/run-1", run_id=trained.id).id
    session.commit()
    run("start")
    assert session.scalars(select(Round.config["lora_rank"])).one() == 24


def test_fine_tuning_from_the_command_line_says_what_it_lacks(run: Run) -> None:
    refused = run("start", "--algorithm", "sft").exception
    assert isinstance(refused, InvalidInput)
    assert "needs 20 approved demonstrations" in str(refused)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (["--set", "magic=1"], InvalidInput, "Unknown settings of On-policy DPO: magic"),
        (["--set", "episodes=8"], InvalidInput, "Unknown settings of On-policy DPO: episodes"),
        (["--strength", "reckless"], InvalidInput, "strength"),
        (["--algorithm", "dpo", "--strength", "gentle"], InvalidInput, "Unknown settings of DPO: strength"),
        (["--set", "beta=-1"], InvalidInput, "beta"),
        (["--set", "beta"], InvalidInput, "no value"),
        (["--algorithm", "magic"], InvalidInput, "algorithm"),
    ],
)
def test_wrong_settings_are_named(run: Run, arguments: list[str], error: type[Exception], words: str) -> None:
    result = run("start", *arguments)
    assert isinstance(result.exception, error)
    assert words in str(result.exception)


def test_only_operators_and_only_rounds_there_are(session: Session, run: Run) -> None:
    factories.member(session, factories.project(session), "operator", email="elsewhere@example.org")
    session.commit()
    for operator in ("labeler@example.org", "elsewhere@example.org", "nobody@example.org"):
        assert isinstance(run("start", operator=operator).exception, Forbidden)
    assert isinstance(run("status", "--round", "3", operator=None).exception, NotFound)
    assert isinstance(run("cancel", "--round", "3").exception, NotFound)

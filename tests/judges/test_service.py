"""Which judges are admitted, what reaches training and how it is marked, and when a judge is paused."""

import gzip
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.db import make_session_factory
from app.domain.alternative_annotator import beside_people
from app.domain.judges import agreement
from app.errors import Unavailable
from app.judges import queries, service, training_queries
from app.judges.forms import AdmissionForm, RunForm
from app.judges.keys import key_of, seal
from app.judges.queries import people_on
from app.lineage import origin_queries
from app.models import Comparison, Judgment, Project, Round, SnapshotComparison
from app.rounds import freezing, powered
from app.rounds.views import page as round_page
from app.rows import PairRow
from tests import factories
from tests.judges.scenes import SECRET, admitted, comparisons, judge, judged_by_people, said, truth
from tests.rounds.loop import config, make_project


class Scene:
    """An admitted judge, 32 comparisons that people judged, and ten that only the judge judged."""

    def __init__(self, session: Session, project: Project | None = None) -> None:
        self.session = session
        self.project = project or factories.project(session)
        self.rubric = factories.published_rubric(session, self.project)
        self.operator = factories.user(session, "operator")
        self.judge = judge(session, self.project)
        self.shared, self.labelers = judged_by_people(session, self.project)
        self.open = comparisons(session, self.project, 10)
        self.run = factories.run(session, self.project, "judge", spec={"judge": self.judge.id}, state="succeeded")
        for number, each in enumerate(self.open):
            said(session, self.judge, each, truth(each, number), run_id=self.run.id)

    def admit(self) -> None:
        admitted(self.session, self.project, self.judge, self.shared)

    @property
    def trained(self) -> list[int]:
        return [each.comparison for each in training_queries.for_training(self.session, self.project.id)]


def test_only_admitted_judges_reach_training_and_only_where_no_person_judged(session: Session) -> None:
    scene = Scene(session)
    assert scene.trained == []
    refused = service.admit(session, scene.judge, scene.operator, AdmissionForm())
    assert (refused.admitted, refused.omega) == (False, None)
    assert refused.reason.endswith("there are 0.")
    assert scene.trained == []
    scene.admit()
    ids = [each.id for each in scene.open]
    assert scene.trained == ids
    # Anybody's judgment counts before a judge's; and no held-out prompt is trained on.
    factories.judgment(session, scene.open[0], preference=1)
    held = factories.prompt(session, scene.project, split="heldout")
    said(session, scene.judge, factories.comparison(session, scene.project, prompt=held), 1)
    measures = factories.comparison(session, scene.project, purpose="human_eval")
    said(session, scene.judge, measures, 1)
    assert scene.trained == ids[1:]

    service.switch(session, scene.judge, scene.operator, on=False)
    session.flush()
    assert scene.trained == []
    service.switch(session, scene.judge, scene.operator, on=True)
    admission = queries.admissions(session, scene.project.id)[scene.judge.id]
    admission.paused_at = datetime.now(UTC)
    session.flush()
    assert scene.trained == []
    admission.paused_at = None
    session.flush()
    assert scene.trained == ids[1:]
    # Another version of the rubric asks for another test.
    factories.rubric(session, scene.project, version=2)
    assert scene.trained == []


def test_the_stored_test_is_the_one_of_the_domain(session: Session) -> None:
    scene = Scene(session)
    scene.admit()
    admission = queries.admissions(session, scene.project.id)[scene.judge.id]
    judged = {each.id: truth(each, number) for number, each in enumerate(scene.shared)}
    people = people_on(session, scene.rubric.id, judged)
    assert len(people) == 3 * 32
    expected = beside_people(judged, people)
    assert (admission.omega, admission.advantage) == (expected.omega, expected.advantage)
    assert [row["p"] for row in admission.result] == [each.p for each in expected.beside]
    assert (admission.items, len(admission.anchors)) == (32, 30)
    sides = {id_: [each.side for each in people if each.item == id_] for id_ in judged}
    agreed = np.mean([[side == judged[id_] for side in those] for id_, those in sides.items()])
    assert admission.agreement == pytest.approx(agreed)


def test_a_round_reads_them_at_its_share_and_marks_them_through_to_lineage(session: Session, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    project = make_project(session, train=24, heldout=2)
    scene = Scene(session, project)
    scene.admit()
    second = judge(session, project, model="second")
    run = factories.run(session, project, "judge", spec={"judge": second.id}, state="succeeded")
    for number, each in enumerate(scene.shared):
        said(session, second, each, truth(each, number), run_id=run.id)
    assert service.admit(session, second, scene.operator, AdmissionForm()).admitted
    said(session, second, scene.open[1], -1, run_id=run.id)  # against the first judge's B: no majority
    session.commit()

    def frozen(share: float) -> tuple[Round, list[PairRow]]:
        begun = factories.round_(
            session, project, state="freezing", config=config(ai_share=share).model_dump(mode="json")
        )
        session.commit()
        sessions = make_session_factory(session.get_bind())  # type: ignore[arg-type]
        found = freezing.freeze(sessions, store, begun.id, lambda *_: None)
        project_, round_ = session.get_one(Project, project.id), session.get_one(Round, begun.id)
        session.refresh(project_)
        snapshot = freezing.add_snapshot(session, project.id, found.read, found.at)
        round_.snapshot_id, round_.state = snapshot.id, "done"
        session.commit()
        with gzip.open(store.resolve(snapshot.location), "rt") as lines:
            return round_, [PairRow.model_validate_json(line) for line in lines]

    none, rows = frozen(0.0)
    assert {row.source for row in rows} == {"people"}
    people = sum(row.split == "train" for row in rows)
    assert people == 24 + 32

    whole, rows = frozen(0.1)
    by_judges = [row for row in rows if row.source == "ai"]
    # floor(0.1 / 0.9 * 56) = 6 of the ten.
    assert len(by_judges) == 6
    for row in by_judges:
        number = [each.id for each in scene.open].index(row.comparison_id)
        side = 0 if number == 1 else truth(scene.open[number], number)
        assert (row.preference, row.split, row.judgments, row.agreement) == (side, "train", (), None)
        assert len(row.judges) == (2 if number == 1 else 1)
    assert [row for row in rows if row.source == "people"] == frozen(0.0)[1]

    snapshot_id = whole.snapshot_id
    held = select(SnapshotComparison.comparison_id).where(SnapshotComparison.snapshot_id == snapshot_id)
    assert set(session.scalars(held)) == {row.comparison_id for row in rows if row.source == "people"}
    learned = origin_queries.learned_from(session, whole)
    plain = origin_queries.learned_from(session, none)
    assert (plain.judges, learned.judgments, learned.people) == ([], plain.judgments, plain.people)
    assert {each.name: each.n for each in learned.judges}["Judge good"] == 6
    view = round_page(session, store, whole)
    assert view.reads.endswith("6 more by AI judges")
    # A judge that is switched off meanwhile makes the worker freeze again.
    ids = [id_ for row in by_judges for id_ in row.judges]
    assert not training_queries.any_withdrawn(session, project.id, ids)
    service.switch(session, scene.judge, scene.operator, on=False)
    session.flush()
    assert training_queries.any_withdrawn(session, project.id, ids)


LATER = datetime(2999, 1, 1, tzinfo=UTC)


def test_it_is_paused_when_it_surely_agrees_less_than_at_its_admission(session: Session) -> None:
    """Admitted at about 80%. 18 of 25 later items (Wilson 95%: 52% to 86%) do not show that it is less now; 18 of 38
    (32% to 63%) do. Calibration items count like people's word."""
    scene = Scene(session)
    scene.admit()
    for number in range(25):
        each = factories.comparison(session, scene.project, overlap=1, state="settled")
        factories.judgment(session, each, preference=2, labeler_id=scene.labelers[0].id)
        said(session, scene.judge, each, 1 if number < 18 else -1, run_id=scene.run.id, created_at=LATER)
    assert service.look(session, scene.project.id) == []
    assert len(scene.trained) == 10
    for _ in range(13):
        gold = factories.comparison(session, scene.project, purpose="calibration", gold=2)
        said(session, scene.judge, gold, -1, run_id=scene.run.id, created_at=LATER)
    [reason] = service.look(session, scene.project.id)
    assert "agrees with people on 47% of 38 items since its admission (95% interval 32% to 63%)" in reason
    assert scene.trained == []
    assert service.look(session, scene.project.id) == []  # said once


@pytest.mark.parametrize(
    ("flips", "served", "said_"),
    [
        (0, "served", None),
        (
            20,
            "served",
            "On the anchors a moving average is outside its limits: contradicts itself, chose what stood first.",
        ),
        (0, "another", "The endpoint reports the model another; at the admission it was served."),
    ],
)
def test_anchors_and_another_model_pause_it(session: Session, flips: int, served: str, said_: str | None) -> None:
    scene = Scene(session)
    scene.judge.served_model = "served"
    scene.admit()
    admission = queries.admissions(session, scene.project.id)[scene.judge.id]
    run = factories.run(session, scene.project, "judge", spec={"judge": scene.judge.id}, state="succeeded")
    for number, anchor in enumerate(admission.anchors):
        first, second = anchor["orders"]
        if number < flips:
            first, second = -1, 1
        said(
            session,
            scene.judge,
            session.get_one(Comparison, anchor["comparison"]),
            first if first == second else 0,
            **{"first": first, "second": second, "is_anchor": True, "run_id": run.id, "served_model": served},
            created_at=LATER,
        )
    assert service.look(session, scene.project.id) == ([f"{scene.judge.name}: {said_}"] if said_ else [])
    since = service.since_admission(session, scene.judge, admission)
    [(_, figures)] = since.runs
    assert figures.items == 30
    assert (len(scene.trained) == 10) is (said_ is None)
    # The next run judges the same anchors again.
    again = service.start(session, scene.judge, scene.operator, RunForm(most=5))
    assert sorted(again.spec["anchors"]) == sorted(each["comparison"] for each in admission.anchors)


def test_people_and_judges_together_on_a_rounds_page(session: Session, tmp_path: Path) -> None:
    """People and the judge judged thirty prompts, and only the judge judged forty: the closed form of PPI++."""
    project = factories.project(session)
    factories.published_rubric(session, project)
    new, old = factories.model(session, project), factories.model(session, project)
    round_ = factories.round_(session, project, policy_after_id=new.id, policy_before_id=old.id)
    one = judge(session, project)
    run = factories.run(session, project, "judge", spec={"judge": one.id})
    people: list[float] = []
    judged: list[float] = []

    def compare(number: int, verdict: int) -> Comparison:
        prompt = factories.prompt(session, project, split="heldout")
        sides = [new.id, old.id] if number % 2 else [old.id, new.id]
        a, b = (factories.completion(session, prompt, model_version_id=id_) for id_ in sides)
        row = factories.comparison(
            session,
            project,
            prompt=prompt,
            completion_a_id=a.id,
            completion_b_id=b.id,
            purpose="human_eval",
            round_id=round_.id,
            overlap=1,
        )
        said(session, one, row, verdict, run_id=run.id)
        new_is_b = sides[1] == new.id
        judged.append((1 + (verdict if new_is_b else -verdict)) / 2)
        return row

    for number in range(30):
        row = compare(number, (-1, 1, 1)[number % 3])
        says = (-1, 1, 1)[(number + (number % 5 == 0)) % 3]
        factories.judgment(session, row, preference=says)
        row.state = "settled"
        people.append((1 + (says if number % 2 == 0 else -says)) / 2)
    for number in range(30, 70):
        compare(number, (1, -1, 0)[number % 3])
    session.flush()
    found = powered.powered_on(session, round_)
    assert found is not None
    assert (found.names, found.judged) == ("Judge good", 70)
    y, f, rest = np.array(people), np.array(judged[:30]), np.array(judged[30:])
    weight = np.cov(y, f)[0, 1] / ((1 + 30 / 40) * np.concatenate([f, rest]).var(ddof=1))
    assert 0 < weight < 1
    assert found.both is not None
    assert found.both.value == pytest.approx(y.mean() + weight * (rest.mean() - f.mean()))
    view = round_page(session, ArtifactStore(tmp_path), round_)
    assert view.people.before is not None
    assert (view.people.before.prompts, view.people.before.value) == (30, pytest.approx(y.mean()))
    # Without people there is no figure of the judge's.
    for each in session.scalars(select(Comparison).where(Comparison.round_id == round_.id)):
        each.state = "open"
    session.flush()
    alone = powered.powered_on(session, round_)
    assert alone is not None
    assert (alone.both, alone.judged) == (None, 70)


def test_keys_are_sealed(session: Session) -> None:
    project = factories.project(session)
    one = judge(session, project, key="sk-very-secret")
    assert "secret" not in (one.sealed_key or "")
    assert key_of(SECRET, one, ()) == "sk-very-secret"
    with pytest.raises(Exception, match="sealed with another secret key"):
        key_of(b"other", one, ())
    assert seal(SECRET, "a") != seal(SECRET, "a")


def test_a_key_of_the_environment_goes_to_no_address_that_an_operator_makes_up(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = judge(session, factories.project(session), key_variable="PREFLOOP_JUDGE_KEY")
    monkeypatch.setenv("PREFLOOP_JUDGE_KEY", "sk-of-everybody")
    with pytest.raises(Unavailable, match="sent only to hosts that PREFLOOP_JUDGE_HOSTS lists"):
        key_of(SECRET, one, ())
    assert key_of(SECRET, one, ("127.0.0.1",)) == "sk-of-everybody"
    monkeypatch.setenv("PREFLOOP_JUDGE_KEY", "sk-of\neverybody")
    with pytest.raises(Unavailable, match="holds characters that no key has") as told:
        key_of(SECRET, one, ("127.0.0.1",))
    assert "everybody" not in str(told.value)


def test_an_endpoint_that_is_away_does_not_widen_what_an_admission_counts(session: Session) -> None:
    """Its model's name stays known, so what another model said before is not read as this one's."""
    scene = Scene(session)
    queries.set_tested(session, scene.judge.id, None, "served")
    queries.set_tested(session, scene.judge.id, "away", None)
    session.refresh(scene.judge)
    assert (scene.judge.test_error, scene.judge.served_model) == ("away", "served")
    stranger = comparisons(session, scene.project, 1)[0]
    said(session, scene.judge, stranger, 1, served_model="another")
    scene.admit()
    assert stranger.id not in scene.trained
    assert len(scene.trained) == 10


def test_anchors_that_people_took_back_or_that_were_withdrawn_pause_nobody(session: Session) -> None:
    """The judge says the same as ever; 20 of its 30 anchors lost their people, and 5 more were withdrawn."""
    scene = Scene(session)
    scene.admit()
    admission = queries.admissions(session, scene.project.id)[scene.judge.id]
    ids = [each["comparison"] for each in admission.anchors]
    of_anchor = {each.id: each for each in scene.shared}
    now = datetime.now(UTC)
    for id_ in ids[:20]:
        for row in session.scalars(select(Judgment).where(Judgment.comparison_id == id_)):
            row.superseded_at, row.superseded_for = now, "removed"
    for id_ in ids[20:25]:
        of_anchor[id_].state = "withdrawn"
    later = factories.run(session, scene.project, "judge", spec={"judge": scene.judge.id}, state="succeeded")
    for id_ in ids[:20] + ids[25:]:
        number = scene.shared.index(of_anchor[id_])
        side = truth(of_anchor[id_], number)
        said(session, scene.judge, of_anchor[id_], side, run_id=later.id, is_anchor=True, created_at=now + timedelta(1))
    session.flush()
    since = service.since_admission(session, scene.judge, admission)
    [(_, newest)] = since.runs
    left = [row for row in admission.anchors if row["comparison"] in ids[25:]]
    agreed = [row["people"].count(row["orders"][0]) / len(row["people"]) for row in left]
    assert newest == (25, pytest.approx(sum(agreed) / 5), 0.0, newest.position)
    assert since.charts["agreement"][0].value == pytest.approx(newest.agreement)
    assert (since.alarms, service.look(session, scene.project.id)) == ([], [])


def test_agreement_since_a_moment_is_that_of_the_domain(session: Session) -> None:
    """Known answers instead of people; without withdrawn ones, taken back judgments, and what measures policies."""
    scene = Scene(session)
    before = datetime.now(UTC) - timedelta(1)
    shared = scene.shared
    for number, each in enumerate(shared):
        when = before - timedelta(1) if number == 3 else before + timedelta(hours=1)
        said(session, scene.judge, each, truth(each, number + number % 3), created_at=when, run_id=scene.run.id)
    shared[0].state, shared[1].gold, shared[1].purpose, shared[2].purpose = "withdrawn", 2, "calibration", "human_eval"
    for row in session.scalars(select(Judgment).where(Judgment.comparison_id == shared[4].id)):
        row.superseded_at, row.superseded_for = before, "removed"
    session.flush()
    people = {
        each.id: [int(np.sign(row.preference or 0)) for row in rows]
        for each in shared[5:]
        if (rows := list(session.scalars(select(Judgment).where(Judgment.comparison_id == each.id))))
    }
    assert len(people) == 27
    judged = queries.verdicts(session, scene.judge.id, scene.rubric.id)
    expected = agreement(judged, people | {shared[1].id: [1]})
    assert expected is not None
    found = queries.agreement_since(session, scene.judge.id, scene.rubric.id, before)
    assert found == (pytest.approx(expected[0]), expected[1])
    assert expected[1] == 28

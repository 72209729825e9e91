"""A round reads exactly what was decided, never trains on held-out prompts, and its data never changes afterwards."""

import gzip
import hashlib
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.models import Adjudication, Comparison, Completion, Ranking
from app.rounds import queries, snapshot_queries
from app.rows import PairRow
from tests import factories
from tests.rounds.loop import decided, freeze, make_project, pair_rows


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


def read(store: ArtifactStore, location: str) -> list[PairRow]:
    with gzip.open(store.resolve(location), "rt") as lines:
        return [PairRow.model_validate_json(line) for line in lines]


def test_the_snapshot_holds_exactly_the_live_judgments(session: Session, store: ArtifactStore) -> None:
    project = make_project(session, train=1, heldout=0)
    (before,) = pair_rows(session, project)
    prompt = factories.prompt(session, project, domain="safety", difficulty="hard", safety_category="weapons")
    comparison = factories.comparison(session, project, prompt=prompt, texts=("no", "yes"), overlap=3)
    first, second, third = (factories.judgment(session, comparison, preference=p) for p in (3, -1, 0))
    third.superseded_at, third.superseded_for = datetime.now(UTC), "undone"
    session.flush()
    edited = factories.judgment(session, comparison, preference=1, labeler_id=third.labeler_id)
    comparison.state = "settled"
    session.flush()

    snapshot = freeze(session, store, project)
    rows = read(store, snapshot.location)
    assert rows[0] == before
    assert rows[1] == PairRow(
        comparison_id=comparison.id,
        prompt_id=prompt.id,
        messages=tuple(prompt.messages),
        response_a="no",
        response_b="yes",
        preference=1.0,  # (3 - 1 + 1) / 3
        p_b=(2 + 0.5) / (3 + 1),  # two of three for B, Jeffreys prior
        agreement=round(2 / 3, 6),
        opposed=round(1 / 3, 6),
        weight=1.0,
        judgments=(first.id, second.id, edited.id),
        rubric_version=1,
        split="train",
        slices={"domain": "safety", "difficulty": "hard", "safety_category": "weapons", "split": "train"},
    )
    expected = {"train": 2, "heldout": 0, "ties": 0, "winners": 2, "judgments": 5, "new": 2, "earlier": {}}
    assert snapshot.counts == expected


def test_only_decided_comparisons_are_read_and_no_repeats_calibration_or_regression(
    session: Session, store: ArtifactStore
) -> None:
    project = make_project(session, train=1, heldout=1)
    kept = {row.comparison_id for row in pair_rows(session, project)}
    labelers = [factories.user(session).id, factories.user(session).id]
    for state in ("open", "in_review", "withdrawn"):
        decided(session, project, factories.prompt(session, project), labelers).state = state
    measured = decided(session, project, factories.prompt(session, project), labelers, purpose="calibration")
    decided(session, project, factories.prompt(session, project), labelers, purpose="repeat", repeat_of_id=measured.id)
    for split in ("calibration", "regression"):
        decided(session, project, factories.prompt(session, project, split=split), labelers)
    decided(session, factories.project(session), factories.prompt(session, project), labelers)  # another project's
    session.flush()
    assert {row.comparison_id for row in pair_rows(session, project)} == kept


def test_a_heldout_prompt_is_never_trained_on_whatever_it_was_asked_for(session: Session) -> None:
    project = make_project(session, train=2, heldout=0)
    labelers = [factories.user(session).id, factories.user(session).id]
    heldout = factories.prompt(session, project, split="heldout")
    for purpose in ("train", "heldout"):
        decided(session, project, heldout, labelers, purpose=purpose)
    rows = pair_rows(session, project)
    assert [row.split for row in rows if row.prompt_id == heldout.id] == ["heldout"] * 2
    trained = {row.prompt_id for row in rows if row.split == "train"}
    assert len(trained) == 2
    assert heldout.id not in trained


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_no_round_reads_a_comparison_of_policies_whatever_becomes_of_its_prompt(session: Session, split: str) -> None:
    """It neither trains nor chooses a training step; another comparison of the same prompt may."""
    project = make_project(session, train=2, heldout=1)
    labelers = [factories.user(session).id, factories.user(session).id]
    prompt = factories.prompt(session, project, split=split)
    before = {row.comparison_id for row in pair_rows(session, project)}
    decided(session, project, prompt, labelers, purpose="human_eval")
    measured = decided(session, project, prompt, labelers, purpose="heldout").id
    rows = {row.comparison_id: row.split for row in pair_rows(session, project)}
    assert rows.keys() - before == {measured}
    assert rows[measured] == "heldout"
    assert snapshot_queries.count_winners(session, project.id, 10, only_new=False) == 2
    assert queries.judgments_since(session, project.id, None) == 2 * 4


def test_a_verdict_stands_in_place_of_the_judgments(session: Session) -> None:
    project = make_project(session, train=0, heldout=0)
    labelers = [factories.user(session).id, factories.user(session).id]
    comparison = decided(session, project, factories.prompt(session, project), labelers, preferences=(3, -3))
    (split,) = pair_rows(session, project)
    assert (split.preference, split.p_b) == (0.0, 0.5)
    session.add(Adjudication(comparison_id=comparison.id, reviewer_id=labelers[0], verdict=2))
    comparison.state = "adjudicated"
    session.flush()
    (settled,) = pair_rows(session, project)
    assert (settled.preference, settled.p_b) == (2.0, 0.9)
    assert len(settled.judgments) == 2


def test_all_that_was_said_reaches_the_trainer(session: Session, store: ArtifactStore) -> None:
    project = make_project(session, train=0, heldout=0)
    ranking = Ranking(project_id=project.id, prompt_id=factories.prompt(session, project).id, size=3)
    session.add(ranking)
    session.flush()
    comparison = factories.comparison(session, project, overlap=4, state="settled", ranking_id=ranking.id)
    first, second, third = (
        factories.judgment(session, comparison, preference=preference, **values)
        for preference, values in (
            (0, {"both_bad": True, "aspects": {"style": 1, "factuality": -1}}),
            (0, {"both_bad": True, "aspects": {"style": 0}}),
            (1, {"aspects": {}}),
        )
    )
    factories.judgment(session, comparison, preference=None, aspects={"style": -1})  # could not judge
    (row,) = read(store, freeze(session, store, project).location)
    assert row.judgments == (first.id, second.id, third.id)
    assert row.ranking == ranking.id
    assert row.both_bad == pytest.approx(2 / 3, abs=1e-6)
    # One for B and two ties: (1 + 1 + 1/2) / 4, and 2 / 4 a tie, which two of the three said.
    assert (row.p_b, row.p_tie, row.agreement) == (0.625, 0.5, pytest.approx(2 / 3, abs=1e-6))
    # By aspect: one for B and a tie, (1 + 1/2 + 1/2) / 3; one for A, (0 + 1/2) / 2.
    assert row.aspects == {"factuality": 0.25, "style": pytest.approx(2 / 3, abs=1e-6)}


def test_the_posterior_is_that_of_the_projects_method(session: Session, store: ArtifactStore) -> None:
    project = make_project(session, train=8, heldout=0)
    assert {row.p_b for row in pair_rows(session, project)} == {round(1 / 6, 6)}  # the majority, two of two
    project.labeling = {"consensus": "dawid_skene"}
    session.flush()
    rows = read(store, freeze(session, store, project).location)
    assert len({row.p_b for row in rows}) == 1
    assert rows[0].p_b < 0.1
    assert rows[0].preference == pytest.approx((2 * rows[0].p_b - 1) * 1.5, abs=1e-5)
    stored = session.scalars(select(Comparison.p_b).where(Comparison.id == rows[0].comparison_id)).one()
    assert stored == rows[0].p_b


def test_ties_are_kept_and_counted(session: Session, store: ArtifactStore) -> None:
    project = make_project(session, train=1, heldout=0)
    labelers = [factories.user(session).id, factories.user(session).id]
    decided(session, project, factories.prompt(session, project), labelers, preferences=(0, 0))
    snapshot = freeze(session, store, project)
    assert snapshot.counts["ties"] == 1
    # Two of two for A, and two ties: (0 + 1/2) / 3 and (1 + 1/2) / 3.
    assert [row.p_b for row in read(store, snapshot.location)] == [pytest.approx(1 / 6, abs=1e-6), 0.5]


def test_the_digest_is_of_the_lines_and_an_equal_snapshot_shares_the_file(
    session: Session, store: ArtifactStore
) -> None:
    project = make_project(session)
    first = freeze(session, store, project)
    file = store.resolve(first.location)
    assert hashlib.sha256(gzip.decompress(file.read_bytes())).hexdigest() == first.digest
    written = file.read_bytes()
    file.write_bytes(b"damaged")
    again = freeze(session, store, project)
    assert (again.digest, again.location) == (first.digest, first.location)
    assert file.read_bytes() == written
    decided(session, project, factories.prompt(session, project), [factories.user(session).id], preferences=(1,))
    other = freeze(session, store, project)
    assert other.digest != first.digest
    assert file.read_bytes() == written


def test_the_same_rows_give_the_same_bytes(session: Session, tmp_path: Path) -> None:
    project = make_project(session)
    session.commit()
    one, two = ArtifactStore(tmp_path / "one"), ArtifactStore(tmp_path / "two")
    first = one.resolve(freeze(session, one, project).location)
    session.rollback()
    second = two.resolve(freeze(session, two, project).location)
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()


def test_responses_cut_by_length_are_marked(session: Session) -> None:
    project = make_project(session, train=1, heldout=0)
    before = pair_rows(session, project)
    assert [(row.finished_a, row.finished_b) for row in before] == [(True, True)]  # imported ones do not say
    comparison = session.scalars(select(Comparison)).one()
    for completion_id, reason in ((comparison.completion_a_id, "length"), (comparison.completion_b_id, "eos")):
        session.get_one(Completion, completion_id).finish_reason = reason
    session.flush()
    after = pair_rows(session, project)
    assert [(row.finished_a, row.finished_b) for row in after] == [(False, True)]

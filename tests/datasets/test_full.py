"""The full export can be imported without loss, and a file that contradicts itself changes nothing."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.datasets.full_export import write_full
from app.datasets.full_import import restore
from app.datasets.reading import ImportFile
from app.datasets.service import no_progress
from app.documents import RubricContent
from app.errors import Conflict, InvalidInput
from app.labeling.settling import settle
from app.models import Adjudication, AgreementTally, Comparison, Completion, Project, Ranking, Thumb
from tests import factories

# Any text that PostgreSQL stores: without NUL and half surrogate pairs.
TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=12)
MOMENT = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
JUDGMENT = st.fixed_dictionaries(
    {
        "labeler": st.integers(0, 3),
        "preference": st.none() | st.integers(-3, 3),
        "aspects": st.dictionaries(st.sampled_from(["factuality", "style"]), st.integers(-1, 1)),
        "flags": st.lists(st.sampled_from(["harmful", "broken"]), unique=True),
        "rationale": TEXT,
        "swapped": st.none() | st.booleans(),
        "superseded": st.none() | st.sampled_from(["edited", "relabeled"]),
        "duration_ms": st.none() | st.integers(0, 10**6),
    }
)
COMPARISON = st.fixed_dictionaries(
    {
        "split": st.sampled_from(["train", "heldout", "calibration"]),
        "domain": TEXT,
        "texts": st.tuples(TEXT, TEXT),
        "version": st.integers(1, 2),
        "ranked": st.booleans(),
        "judgments": st.lists(JUDGMENT, max_size=4, unique_by=lambda said: said["labeler"]),
        "verdict": st.none() | st.integers(-3, 3),
        "thumb": st.none() | st.tuples(st.integers(0, 3), st.booleans(), TEXT),
        "demonstration": st.none() | st.sampled_from(["pending", "approved", "rejected"]),
    }
)


def build(session: Session, holds: list[dict[str, Any]]) -> Project:
    project = factories.project(session, review_threshold=0.7, labeling={"consensus": "strength_weighted"})
    asked = RubricContent(guideline="Prefer the better answer.").model_dump(mode="json", exclude={"strengths"})
    rubrics = [factories.rubric(session, project, version=n, strengths=n + 2, **asked) for n in (1, 2)]
    kinds = ("person", "imported", "simulated", "ai_judge")
    people = [factories.user(session, kind=kind, name="Zoë") for kind in kinds]
    for n, each in enumerate(holds):
        prompt = factories.prompt(session, project, f"{n}?", split=each["split"], domain=each["domain"])
        ranking = Ranking(project_id=project.id, prompt_id=prompt.id, size=3)
        if each["ranked"]:
            session.add(ranking)
            session.flush()
        live = [said for said in each["judgments"] if said["superseded"] is None]
        row = factories.comparison(
            session,
            project,
            prompt=prompt,
            rubric_id=rubrics[each["version"] - 1].id,
            overlap=max(len(live), 1),
            ranking_id=ranking.id,
            external_id=f"pair {n}",
        )
        # The factory treats an empty text as missing.
        for id_, text in zip((row.completion_a_id, row.completion_b_id), each["texts"], strict=True):
            session.execute(Completion.__table__.update().where(Completion.id == id_).values(text=text))
        for k, said in enumerate(each["judgments"]):
            given_ = {name: said[name] for name in ("aspects", "flags", "rationale", "swapped", "duration_ms")}
            ended = None if said["superseded"] is None else MOMENT + timedelta(days=1)
            factories.judgment(
                session,
                row,
                preference=said["preference"],
                labeler_id=people[said["labeler"]].id,
                both_bad=said["preference"] == 0,
                created_at=MOMENT + timedelta(seconds=100 - k),  # the order is by id, not by time
                superseded_at=ended,
                superseded_for=said["superseded"],
                **given_,
            )
        settle(session, [row.id])
        session.refresh(row)
        if each["verdict"] is not None:
            row.state = "adjudicated"
            verdict = {"reviewer_id": people[0].id, "verdict": each["verdict"], "note": "so"}
            session.add(Adjudication(comparison_id=row.id, **verdict))
        if each["thumb"] is not None:
            who, liked, why = each["thumb"]
            about = {"completion_id": row.completion_b_id, "labeler_id": people[who].id}
            session.add(Thumb(project_id=project.id, liked=liked, rationale=why, **about))
        if each["demonstration"] is not None:
            factories.demonstration(session, prompt, state=each["demonstration"], author_id=people[1].id)
        if n % 2:
            first = session.scalar(select(func.min(Comparison.id)).where(Comparison.project_id == project.id))
            row.purpose, row.repeat_of_id = "repeat", first
    session.commit()
    return project


def export(session: Session, project: Project, path: Path, **options: Any) -> list[dict[str, Any]]:
    session.commit()
    write_full(session, project, path, progress=no_progress, **options)
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    phases=(Phase.generate,),  # shrinking takes minutes on a database
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(holds=st.lists(COMPARISON, min_size=1, max_size=4))
def test_what_is_exported_comes_back_equal(session: Session, tmp_path: Path, holds: list[dict[str, Any]]) -> None:
    project = build(session, holds)
    before = export(session, project, tmp_path / "full.jsonl")
    restored = restore(session, ImportFile(tmp_path / "full.jsonl", "full.jsonl"), no_progress)
    after = export(session, restored.project, tmp_path / "again.jsonl")
    for line in before:
        if line["record"] == "labeler" and line["kind"] == "person":
            line["kind"] = "imported"  # nobody can sign in as them
    assert after == before
    judged = {(said["comparison"], said["labeler"]) for said in before if said["record"] == "judgment"}
    assert len(judged) == sum(len(each["judgments"]) for each in holds)
    # The database maintains counters and tallies, so they follow.
    for column in (func.sum(Comparison.judgment_count), func.count(Comparison.p_b)):
        of = [session.scalar(select(column).where(Comparison.project_id == p.id)) for p in (project, restored.project)]
        assert of[0] == of[1]
    tallied = func.coalesce(func.sum(AgreementTally.n * func.cardinality(AgreementTally.answers)), 0)
    of = [session.scalar(select(tallied).where(AgreementTally.project_id == p.id)) for p in (project, restored.project)]
    assert of[0] == of[1]


def held() -> dict[str, Any]:
    said = {"labeler": 0, "preference": 2, "aspects": {}, "flags": [], "rationale": "as Zoë says", "swapped": True}
    judged = [said | {"superseded": None, "duration_ms": 5}]
    about = {"split": "heldout", "domain": "law", "texts": ("a", "b"), "version": 2, "ranked": False}
    return about | {"judgments": judged, "verdict": None, "thumb": (1, True, ""), "demonstration": "approved"}


def test_pseudonyms_are_numbers_and_nobody_is_named(session: Session, tmp_path: Path) -> None:
    lines = export(session, build(session, [held()]), tmp_path / "x.jsonl", pseudonyms=True)
    assert lines[0]["pseudonyms"]
    assert [line["name"] for line in lines if line["record"] == "labeler"] == ["labeler 1", "labeler 2"]
    (judgment,) = [line for line in lines if line["record"] == "judgment"]
    assert (judgment["labeler"], judgment["shown_first"]) == (1, "b")
    assert judgment["rationale"] == "as Zoë says"  # what people wrote stays as it is


def test_what_removed_labelers_gave_is_not_exported(session: Session, tmp_path: Path) -> None:
    project = build(session, [held()])
    row = session.scalars(select(Comparison)).one()
    gone = factories.judgment(session, row, preference=1, superseded_at=MOMENT, superseded_for="removed")
    lines = export(session, project, tmp_path / "x.jsonl")
    assert sum(line["record"] == "judgment" for line in lines) == 1
    assert all(line.get("name") != f"User {gone.labeler_id}" for line in lines)


@pytest.mark.parametrize(
    ("record", "change", "reason"),
    [
        ("judgment", {"labeler": 9}, "there is no labeler 9 above it"),
        ("judgment", {"preference": 5}, "preference"),
        ("judgment", {"rationale": "\0"}, "NUL"),
        ("comparison", {"rubric_version": 3}, "there is no rubric 3 above it"),
        ("comparison", {"number": 2}, "its number must be 1"),
        ("comparison", {"state": "adjudicated"}, "has a verdict if, and only if"),
        ("comparison", {"response_b": 1}, "contradicts itself"),
        ("comparison", {"digest": "0" * 64}, "comparison 1 has the digest of another one"),
        ("prompt", {"domain": "d" * 201}, "domain: String should have at most 200"),
        ("prompt", {"messages": [{"role": "user", "content": 5}]}, "content: Input should be a valid string"),
        ("prompt", {"messages": [{"role": "user"}]}, "a message without a role or content"),
        ("prompt", {"messages": [{"role": "user", "content": "a", "tool_calls": "b"}]}, "tool_calls"),
        ("judgment", {"aspects": {"charm": 1}}, "rubric version 2 has no aspect charm"),
        ("judgment", {"flags": ["rude"]}, "rubric version 2 has no flag rude"),
        ("judgment", {"flags": ["broken", "broken"]}, "names one flag twice"),
        ("labeler", {"name": "\u200b"}, "name: Value should have at least 1 item"),
        ("response", {"prompt": 1, "secret": "x"}, "secret"),
        ("rubric", {"record": "project"}, "full.jsonl, line 2"),
    ],
)
def test_a_file_that_contradicts_itself_changes_nothing(
    session: Session, tmp_path: Path, record: str, change: dict[str, Any], reason: str
) -> None:
    path = tmp_path / "full.jsonl"
    lines = export(session, build(session, [held()]), path)
    at = next(n for n, line in enumerate(lines) if line["record"] == record)
    lines[at] |= change
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InvalidInput, match=reason):
        restore(session, ImportFile(path, "full.jsonl"), no_progress)
    assert session.scalar(select(func.count()).select_from(Project)) == 1


def test_an_aspect_is_on_the_rubrics_scale(session: Session, tmp_path: Path) -> None:
    """Otherwise the pages of agreement would count a step that does not exist."""
    path = tmp_path / "full.jsonl"
    lines = export(session, build(session, [held() | {"version": 1}]), path)
    next(line for line in lines if line["record"] == "judgment")["aspects"] = {"style": -4}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InvalidInput, match="preference -4 is outside rubric version 1's -3 to 3"):
        restore(session, ImportFile(path, "full.jsonl"), no_progress)


def test_a_taken_address_is_refused_or_numbered(session: Session, tmp_path: Path) -> None:
    project = build(session, [held()])
    file = ImportFile(tmp_path / "full.jsonl", "full.jsonl")
    export(session, project, file.path)
    with pytest.raises(Conflict, match=project.slug):
        restore(session, file, no_progress, slug=project.slug)
    assert restore(session, file, no_progress).project.slug == f"{project.slug}-2"

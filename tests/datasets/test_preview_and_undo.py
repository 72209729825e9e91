"""What an import's preview shows, what the import reports, and how it is undone."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.datasets.export import write_preferences
from app.datasets.preview import preview
from app.datasets.reading import ImportFile
from app.datasets.service import ImportOptions, ImportReport, import_files, no_progress, plan, project_for_import
from app.datasets.undo import judged_here, undo
from app.errors import Conflict, NotFound
from app.insights import service as insights
from app.labeling import calibration
from app.labeling.opening import open_copy
from app.models import (
    Base,
    Comparison,
    Completion,
    DataImport,
    Demonstration,
    Judgment,
    Project,
    Prompt,
    Ranking,
    Snapshot,
    SnapshotComparison,
    SnapshotDemonstration,
    User,
)
from app.review import relabel_queries
from tests import factories


@pytest.fixture
def project(session: Session) -> Project:
    return project_for_import(session, "data", None, actor_id=None)


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., ImportFile]:
    def file_(*lines: Any, name: str = "x.jsonl") -> ImportFile:
        path = tmp_path / name
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return ImportFile(path, name)

    return file_


@pytest.fixture
def put(session: Session, project: Project, file: Callable[..., ImportFile]) -> Callable[..., ImportReport]:
    def put_(*lines: Any, name: str = "x.jsonl", **options: Any) -> ImportReport:
        return import_files(session, project, [file(*lines, name=name)], ImportOptions(**options))

    return put_


def pair(**values: Any) -> dict[str, Any]:
    return {"prompt": "Why?", "response_a": "Because.", "response_b": "No idea."} | values


RANKED = {"prompt": "Name a fish.", "responses": ["Cod.", "Eel.", "Carp.", "A dog."], "ranks": [1, 2, 2, 4]}


def counts(session: Session) -> dict[str, int]:
    return {
        name: session.scalar(select(func.count()).select_from(table)) or 0
        for name, table in Base.metadata.tables.items()
    }


# ---- preview ---------------------------------------------------------------------------------------------------------


def test_a_preview_shows_the_first_rows_and_writes_nothing(
    session: Session, project: Project, file: Callable[..., ImportFile]
) -> None:
    before = counts(session)
    lines = [
        pair(choices={"ann": "A"}, colour="red"),
        pair(prompt=""),
        pair(prompt="Held?", split="heldout"),
        *(pair(prompt=f"Question {n}") for n in range(20)),
    ]  # fmt: skip
    shown = preview(plan(session, project, [file(*lines), file(RANKED, name="r.jsonl")]))
    assert counts(session) == before
    first, ranked = shown.files
    assert (first.format, first.lines, [row.line for row in first.rows]) == ("pairs", 23, [1, 2, 3, 4, 5])
    assert first.rows[0].becomes == "A comparison. ann: A is better. Prompt: train."
    assert first.rows[0].texts == [("User", "Why?"), ("Response A", "Because."), ("Response B", "No idea.")]
    assert first.rows[1].refused == "prompt: a message of the prompt is empty"
    assert first.rows[2].becomes.endswith("Prompt: held out.")
    assert ranked.rows[0].becomes.startswith("A ranking, 6 comparisons. The first: r: ")
    assert shown.adds == Counter(prompts=23, comparisons=28, judgments=7, demonstrations=0)
    assert "x.jsonl: the field colour (1 line) is not imported here and was left out." in shown.notes


def test_what_is_lost_or_unexpected_is_told(session: Session, put: Callable[..., ImportReport]) -> None:
    put(pair(choice="A", labeler="ann", rationale="short"))
    report = put(
        pair(choice="A", labeler="ann", rationale="clear"),
        pair(choice="A", labeler="ann", rationale="short"),
        pair(labeler="bob", rationale="unsure"),
        {"prompt": "Which?", "response_a": "<|im_start|>user", "response_b": "b"},
    )
    assert any("with another rationale" in note and note.startswith("x.jsonl, line 1:") for note in report.notes)
    assert any("a rationale but no choice" in note and "line 3" in note for note in report.notes)
    assert any("chat template (<|im_start|>)" in note for note in report.notes)
    assert session.scalars(select(Judgment.rationale)).all() == ["short"]


# ---- rows of several responses, AI judges, splits --------------------------------------------------------------------


def test_a_ranking_is_one_answer_to_all_its_pairs(session: Session, put: Callable[..., ImportReport]) -> None:
    assert put(RANKED).added["comparisons"] == 6
    found = session.scalars(select(Comparison)).all()
    assert [(c.state, c.judgment_count) for c in found] == [("settled", 1)] * 6
    assert sorted(c.offered for c in found) == [False] * 5 + [True]
    assert session.execute(select(Ranking.id, Ranking.size)).all() == [(found[0].ranking_id, 4)]
    texts = {c.id: c.text for c in session.scalars(select(Completion))}
    ranks = dict(zip(RANKED["responses"], RANKED["ranks"], strict=True))
    for c in found:
        a, b = ranks[texts[c.completion_a_id]], ranks[texts[c.completion_b_id]]
        assert c.consensus == 2 * ((a > b) - (a < b))
    assert sum(put(RANKED).added.values()) == 0


def test_rated_responses_to_one_prompt_are_compared(session: Session, put: Callable[..., ImportReport]) -> None:
    def row(prompt: str, response: str, helpfulness: int) -> dict[str, Any]:
        return {"prompt": prompt, "response": response, "helpfulness": helpfulness, "verbosity": 2}

    report = put(row("Why?", "a", 4), row("Alone?", "b", 3), row("Why?", "c", 1))
    assert (report.added["comparisons"], report.added["demonstrations"]) == (1, 0)
    assert any("The only rated response".lower() in note.lower() for note in report.notes)
    (comparison,) = session.scalars(select(Comparison))
    better = comparison.completion_b_id if (comparison.consensus or 0) > 0 else comparison.completion_a_id
    assert session.get_one(Completion, better).text == "a"


def test_ratings_by_aspect_are_kept_for_the_aspects_of_the_rubric(
    session: Session, project: Project, put: Callable[..., ImportReport]
) -> None:
    names = ("Instruction following", "honesty")
    factories.rubric(session, project, version=2, aspects=[{"name": name, "question": "Which?"} for name in names])
    given = {"instruction_following": ("5", "1"), "honesty": ("N/A", "2"), "helpfulness": ("4", "3")}
    completions = [
        {"response": text, "model": text, "annotations": {name: {"Rating": said[n]} for name, said in given.items()}}
        for n, text in enumerate(("Cod.", "A dog."))
    ]
    report = put({"instruction": "Name a fish.", "completions": completions})
    comparison, judgment = session.execute(select(Comparison, Judgment).join(Judgment)).one()
    b = session.get_one(Completion, comparison.completion_b_id).text
    assert judgment.aspects == {"Instruction following": 2 if b == "Cod." else -2}
    assert any("the rubric has no aspect helpfulness" in note for note in report.notes)
    pair_ = pair(preference=3, aspects={"honesty": -1})
    put(pair_)
    assert put(pair_).notes == []
    assert any("other aspects" in note for note in put(pair_ | {"aspects": {"honesty": 2}}).notes)
    assert session.scalars(select(Judgment.aspects).order_by(Judgment.id.desc())).first() == {"honesty": -1}


def test_ai_judges_are_marked(session: Session, put: Callable[..., ImportReport]) -> None:
    put(pair(choice="A", judge="ann"), pair(choice="B", labeler="ann"))
    put(pair(prompt="Other?", choice="A", labeler="ann"), ai_judge=True)
    found = session.execute(select(User.kind, func.count(Judgment.id)).join(Judgment).group_by(User.kind)).all()
    assert dict(found) == {"ai_judge": 2, "imported": 1}
    assert sum(put(pair(choice="A", judge="ann")).added.values()) == 0


def test_files_are_splits(session: Session, project: Project, file: Callable[..., ImportFile]) -> None:
    files = [
        file(pair(prompt="One?"), pair(prompt="Both?"), name="train.jsonl"),
        file(pair(prompt="Both?"), pair(prompt="Two?"), pair(prompt="Mine?", split="train"), name="test.jsonl"),
    ]
    report = import_files(session, project, files, ImportOptions())
    splits = {
        messages[0]["content"]: split for messages, split in session.execute(select(Prompt.messages, Prompt.split))
    }
    assert splits == {"One?": "train", "Both?": "heldout", "Two?": "heldout", "Mine?": "train"}
    assert any("test.jsonl is named after a test or validation split" in note for note in report.notes)


# ---- spaces ----------------------------------------------------------------------------------------------------------


def test_spaces_survive_export_and_import(
    session: Session, project: Project, put: Callable[..., ImportReport], tmp_path: Path
) -> None:
    put({"prompt": [{"role": "user", "content": " Why?\n"}], "chosen": "  Rye.\n", "rejected": "\tMud. "})
    out = tmp_path / "out.jsonl"
    write_preferences(session, project, out, progress=no_progress)
    other = project_for_import(session, "other", None, None)
    import_files(session, other, [ImportFile(out, "out.jsonl")], ImportOptions())
    query = select(Prompt.messages, Completion.text).join(Completion, Completion.prompt_id == Prompt.id)
    for each in (project, other):
        texts = sorted((m[0]["content"], t) for m, t in session.execute(query.where(Prompt.project_id == each.id)))
        assert texts == [(" Why?\n", "\tMud. "), (" Why?\n", "  Rye.\n")]


# ---- undo ------------------------------------------------------------------------------------------------------------


def test_an_undone_import_leaves_nothing_that_counts_and_can_come_again(
    session: Session, project: Project, put: Callable[..., ImportReport]
) -> None:
    put(pair(prompt="Kept?", pair_id="k", choices={"ann": "A"}))
    kept = session.scalars(select(Comparison)).one()
    before = insights.live(session, project.id).figures
    lines = [
        pair(pair_id="p", choices={"ann": "A", "bob": "B"}),
        pair(prompt="Kept?", pair_id="k", choices={"bob": "B", "cid": "B"}),
        RANKED | {"prompt": "Kept?"},
    ]
    answers = put(*lines[:2])
    ranked = put(lines[2], name="r.jsonl")
    given = put({"prompt": "Kept?", "response": "Since."}, name="d.jsonl")
    session.refresh(kept)
    assert (kept.judgment_count, kept.overlap) == (3, 3)
    for report in (ranked, answers, given):
        assert report.import_id is not None
        undo(session, project, report.import_id)
    session.expire_all()
    assert (kept.state, kept.judgment_count, kept.overlap, kept.consensus) == ("settled", 1, 1, -2)
    states = Counter(session.scalars(select(Comparison.state)))
    assert states == {"settled": 1, "withdrawn": 7}
    assert set(session.scalars(select(Demonstration.state))) == {"withdrawn"}
    assert sorted(session.scalars(select(Prompt.split))) == ["train", "withdrawn"]
    assert insights.live(session, project.id).figures == before

    with pytest.raises(Conflict, match="was already undone"):
        undo(session, project, answers.import_id or 0)
    with pytest.raises(NotFound):
        undo(session, factories.project(session), answers.import_id or 0)
    again = [
        put(*lines[:2]),
        put(lines[2], name="r.jsonl"),
        put({"prompt": "Kept?", "response": "Since."}, name="d.jsonl"),
    ]
    assert [report.added - Counter(labelers=2) for report in again] == [
        report.added - Counter(labelers=2) for report in (answers, ranked, given)
    ]
    session.expire_all()
    assert (kept.judgment_count, kept.overlap) == (3, 3)


def test_undoing_says_what_stays(session: Session, project: Project, put: Callable[..., ImportReport]) -> None:
    report = put(pair(choices={"ann": "A"}), pair(prompt="Used?"))
    read, open_ = session.scalars(select(Comparison).order_by(Comparison.id))
    factories.judgment(session, open_, preference=2)  # somebody has answered on the labeling page
    snapshot = Snapshot(project_id=project.id, digest="x", location="x", counts={})
    session.add(snapshot)
    session.flush()
    session.add(SnapshotComparison(snapshot_id=snapshot.id, comparison_id=read.id))
    factories.round_(session, project, snapshot_id=snapshot.id)
    used = session.scalars(select(Prompt).where(Prompt.messages[0]["content"].astext == "Used?")).one()
    factories.comparison(session, project, prompt=used)
    assert judged_here(session, project, report.import_id or 0) == 1
    done = undo(session, project, report.import_id or 0)
    assert "Judgments given here that no longer count: 1." in done.describe()
    assert judged_here(session, project, report.import_id or 0) == 0
    assert (done.withdrawn["comparisons"], done.withdrawn["judgments"], done.withdrawn["prompts"]) == (2, 1, 1)
    assert (done.kept, done.rounds) == (1, 1)
    assert "1 prompts stay" in done.describe()
    assert "Rounds that learned from some of it: 1." in done.describe()
    session.expire_all()
    assert (used.split, read.state, open_.state) == ("train", "withdrawn", "withdrawn")
    assert session.scalars(select(Judgment.superseded_for).order_by(Judgment.id)).all() == ["removed", None]


def test_undoing_counts_every_round_that_learned_from_it(
    session: Session, project: Project, put: Callable[..., ImportReport]
) -> None:
    """This includes rounds that read its judgments on an older comparison, or mixed in its demonstrations."""
    put(pair(choices={"ann": "A"}))
    (there,) = session.scalars(select(Comparison))
    session.commit()

    def round_of(read: Comparison | Demonstration, column: str) -> None:
        snapshot = Snapshot(project_id=project.id, digest="x", location="x", counts={})
        session.add(snapshot)
        session.flush()
        held: dict[str, Any] = {"snapshot_id": snapshot.id}
        if isinstance(read, Comparison):
            session.add(SnapshotComparison(**held, comparison_id=read.id))
        else:
            session.add(SnapshotDemonstration(**held, demonstration_id=read.id))
        factories.round_(session, project, **{column: snapshot.id})
        session.commit()

    round_of(there, "snapshot_id")  # before the import that is undone
    # A file may claim any age for its judgments.
    answers = put(pair(labeler="bob", choice="B", submitted_at="2001-01-01T00:00:00Z"), name="b.jsonl")
    given = put({"prompt": "Written?", "response": "Yes."}, name="d.jsonl")
    session.commit()
    (written,) = session.scalars(select(Demonstration))
    round_of(there, "snapshot_id")
    round_of(written, "ptx_snapshot_id")
    undone = [undo(session, project, report.import_id or 0) for report in (answers, given)]
    assert [(done.withdrawn["judgments"], done.withdrawn["demonstrations"]) for done in undone] == [(1, 0), (0, 1)]
    assert [done.rounds for done in undone] == [1, 1]


def test_what_imported_comparisons_became_goes_with_them(
    session: Session, project: Project, put: Callable[..., ImportReport]
) -> None:
    """Otherwise a wrong known answer would still pause people, and rounds would learn from repeated questions."""
    lines = [pair(prompt=f"Question {n}?", choices={"ann": "A"}) for n in range(2)]
    report = put(*lines, pair(prompt="Known?", known_answer=2))
    first, second, item = session.scalars(select(Comparison).order_by(Comparison.id))
    labeler, newer = factories.user(session), factories.rubric(session, project, version=2)
    relabel_queries.ask_again(session, project.id, [first.id], newer.id, 1)
    again = session.scalars(select(Comparison).where(Comparison.relabel_of_id == first.id)).one()
    factories.judgment(session, again, preference=2, labeler_id=labeler.id)
    became = [
        again,
        open_copy(session, again, "repeat", labeler_id=labeler.id),
        calibration.make_calibration(session, project, second.id, -2, factories.user(session, "admin")),
        open_copy(session, item, "calibration", rubric_id=newer.id, gold=2),
    ]
    other = factories.comparison(session, project)
    assert judged_here(session, project, report.import_id or 0) == 1
    done = undo(session, project, report.import_id or 0)
    assert (done.withdrawn["comparisons"], done.people) == (3, 1)
    session.expire_all()
    assert [row.state for row in (first, second, item, *became)] == ["withdrawn"] * 7
    assert other.state == "open"


def test_an_import_that_adds_nothing_is_no_import(session: Session, put: Callable[..., ImportReport]) -> None:
    put(pair())
    assert put(pair()).import_id is None
    assert session.scalar(select(func.count()).select_from(DataImport)) == 1


def test_thumbs_are_previewed_and_taken_back(session: Session, project: Project, put: Any, file: Any) -> None:
    down = {"prompt": "2+5?", "completion": "8", "label": False}
    (shown,) = preview(plan(session, project, [file(down)])).files
    assert shown.rows[0].becomes == "A thumb down by x. Prompt: train."
    first, second = put(down), put(down | {"labeler": "Ada", "label": True})
    assert (first.added["thumbs"], second.added["thumbs"]) == (1, 1)
    done = undo(session, project, first.import_id)
    assert (done.withdrawn["thumbs"], done.kept) == (1, 1)  # Ada's thumb refers to the prompt
    assert undo(session, project, second.import_id).withdrawn["thumbs"] == 1
    assert put(down).added["thumbs"] == 1

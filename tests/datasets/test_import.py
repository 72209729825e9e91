"""Importing files into a real database."""

import gzip
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import krippendorff
import numpy as np
import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from app.datasets import queries
from app.datasets.reading import ImportFile, find_files
from app.datasets.service import ImportOptions, ImportRefused, ImportReport, import_files, project_for_import
from app.db import make_session_factory
from app.errors import InvalidInput
from app.insights import service as insights
from app.labelers import service as labelers
from app.models import AuditEvent, Comparison, Completion, Judgment, Project, Prompt, Rubric, Thumb, User
from app.review import relabeling
from app.review.forms import RelabelForm
from tests import factories

FIXTURES = Path(__file__).parent.parent / "fixtures"


@pytest.fixture
def project(session: Session) -> Project:
    project = project_for_import(session, "data", None, actor_id=None)
    project.labeling = {}  # every comparison asks for the project's overlap
    return project


@pytest.fixture
def put(session: Session, project: Project, tmp_path: Path) -> Any:
    """`put({...}, {...}, name="x.jsonl", **options)` imports these lines; a string is used as a line unchanged."""

    def put_(*lines: Any, name: str = "x.jsonl", **options: Any) -> ImportReport:
        path = tmp_path / name
        path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
        return import_files(session, project, [ImportFile(path, name)], ImportOptions(**options))

    return put_


def bring(session: Session, project: Project, *names: str, **options: Any) -> ImportReport:
    return import_files(session, project, find_files([FIXTURES / name for name in names]), ImportOptions(**options))


def count(session: Session, table: type[Any], *where: Any) -> int:
    return session.scalar(select(func.count()).select_from(table).where(*where)) or 0


def pair(**values: Any) -> dict[str, Any]:
    return {"prompt": "Why?", "response_a": "Because.", "response_b": "No idea."} | values


def lines(path: Path) -> list[dict[str, Any]]:
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in content.splitlines()]


# --- the data sets -------------------------------------------------------------------------------------------------


def test_argument_pairs_with_their_judgments_by_one_import(session: Session, project: Project) -> None:
    report = bring(session, project, "convincing_arguments", split_by="topic", heldout_share=0.4)
    answers = lines(FIXTURES / "convincing_arguments" / "judgments.jsonl")
    pairs = lines(FIXTURES / "convincing_arguments" / "pairs.jsonl.gz")
    assert report.added["comparisons"] == len(pairs) == 18
    assert report.added["judgments"] == len(answers) == 90
    assert report.added["labelers"] == len({a["labeler"] for a in answers})
    assert report.added["prompts"] == len({p["topic"] for p in pairs})
    assert not report.skipped
    assert any("hit_seconds (90 lines)" in note for note in report.notes)

    # Every stored judgment matches its line.
    stored = session.execute(
        select(Comparison.external_id, User.name, Judgment.preference, Judgment.rationale, Judgment.created_at)
        .join(Comparison, Comparison.id == Judgment.comparison_id)
        .join(User, User.id == Judgment.labeler_id)
    )
    said = {(a["pair_id"], a["labeler"]): ({"A": -2, "tie": 0, "B": 2}[a["choice"]], a["rationale"]) for a in answers}
    assert {(p, name): (preference, why) for p, name, preference, why, _ in stored} == said
    first = next(a for a in answers)
    at = session.scalar(select(Judgment.created_at).order_by(Judgment.id).limit(1))
    assert at is not None
    assert at.strftime("%Y-%m-%dT%H:%M:%SZ") == first["submitted_at"]

    # Overlap, agreement and state follow from the choices.
    votes = {p["pair_id"]: Counter(a["choice"] for a in answers if a["pair_id"] == p["pair_id"]) for p in pairs}
    for comparison in session.scalars(select(Comparison)):
        of_pair = votes[comparison.external_id or ""]
        n = of_pair.total()
        share = sum(k * (k - 1) for k in of_pair.values()) / (n * (n - 1))
        assert comparison.overlap == comparison.judgment_count == n
        assert comparison.agreement == pytest.approx(share)
        assert comparison.state == ("in_review" if share < project.review_threshold else "settled")
        tied = of_pair["A"] == of_pair["B"] or of_pair["tie"] > max(of_pair["A"], of_pair["B"])
        assert comparison.consensus == pytest.approx(0 if tied else 2 * (of_pair["B"] - of_pair["A"]) / n)

    # A topic and its comparisons are in one split.
    splits = dict(session.execute(select(Prompt.domain, Prompt.split)).all())
    assert set(splits.values()) == {"train", "heldout"}
    purposes = session.execute(select(Prompt.split, Comparison.purpose).join(Prompt, Prompt.id == Comparison.prompt_id))
    assert all(split == purpose for split, purpose in purposes)


def test_alpha_of_an_import_equals_the_krippendorff_package(session: Session, project: Project) -> None:
    bring(session, project, "convincing_arguments")
    answers = lines(FIXTURES / "convincing_arguments" / "judgments.jsonl")
    units = sorted({a["pair_id"] for a in answers})
    labelers = sorted({a["labeler"] for a in answers})
    table = np.full((len(labelers), len(units)), np.nan)
    for a in answers:
        table[labelers.index(a["labeler"]), units.index(a["pair_id"])] = {"A": -1, "tie": 0, "B": 1}[a["choice"]]
    found = insights.live(session, project.id).figures
    for level, alpha in (("nominal", found.nominal_alpha), ("ordinal", found.ordinal_alpha)):
        expected = krippendorff.alpha(reliability_data=table, level_of_measurement=level)
        assert alpha.value == pytest.approx(expected, abs=1e-9)


def test_hh_transcripts(session: Session, project: Project) -> None:
    report = bring(session, project, "hh_rlhf.jsonl")
    rows = lines(FIXTURES / "hh_rlhf.jsonl")
    assert report.added["comparisons"] == report.added["judgments"] == len(rows)
    texts = {c.id: c.text for c in session.scalars(select(Completion))}
    seen = set()
    found = session.execute(
        select(Comparison, Prompt, Judgment.preference)
        .join(Prompt, Prompt.id == Comparison.prompt_id)
        .join(Judgment, Judgment.comparison_id == Comparison.id)
    )
    for comparison, prompt, preference in found:
        names = {"user": "Human", "assistant": "Assistant"}
        start = "".join(f"\n\n{names[m['role']]}: {m['content']}" for m in prompt.messages) + "\n\nAssistant: "
        a, b = texts[comparison.completion_a_id], texts[comparison.completion_b_id]
        chosen, rejected = (b, a) if preference > 0 else (a, b)
        seen.add((start + chosen, start + rejected))
    assert seen == {(row["chosen"], row["rejected"]) for row in rows}
    assert session.scalars(select(User.name)).all() == ["hh_rlhf"]


def test_hh_responses_take_sides_by_their_texts_alone(session: Session, put: Any, tmp_path: Path) -> None:
    def row(n: int, good: str, bad: str) -> dict[str, str]:
        start = f"\n\nHuman: Question {n}\n\nAssistant: "
        return {"chosen": start + good, "rejected": start + bad}

    put(*(row(n, "yes", "no") for n in range(200)))
    preferences = session.scalars(select(Judgment.preference)).all()
    b_chosen = sum(p > 0 for p in preferences)
    assert 70 < b_chosen < 130  # 4 standard deviations of a fair coin
    # The opposite answer to the same pair from the same source is a contradiction, not a second pair.
    with pytest.raises(ImportRefused, match="already answered this pair"):
        put(row(0, "no", "yes"))


def test_every_awkward_transcript_is_imported_or_refused_by_name(session: Session, project: Project) -> None:
    with pytest.raises(ImportRefused) as refused:
        bring(session, project, "hh_awkward.jsonl")
    problems = {problem.line: problem.reason for problem in refused.value.problems}
    assert problems.keys() == {3, 4, 5, 6, 7, 8}
    assert "chosen (2 turns) and rejected (3 turns) part at turn 2" in problems[3]
    assert "chosen (5 turns) and rejected (4 turns) part at turn 4" in problems[4]
    assert "part at turn 1" in problems[5]
    assert "end in the same response" in problems[6]
    assert "chosen does not end with an assistant turn" in problems[7]
    assert 'must begin with "Human:"' in problems[8]
    assert count(session, Prompt) == count(session, Comparison) == 0

    report = bring(session, project, "hh_awkward.jsonl", skip_invalid=True)
    assert [problem.line for problem in report.skipped] == [3, 4, 5, 6, 7, 8]
    assert report.added["comparisons"] == 2
    assert "Pairs with an empty response: 1, imported as they are." in report.notes
    conversations = session.scalars(select(Prompt.messages).order_by(Prompt.id)).all()
    assert [[m["role"] for m in messages] for messages in conversations] == [["user"], ["user", "assistant", "user"]]
    assert conversations[1][1]["content"] == "Here is one:\n\nA cow walks into a bar."


def test_pandalm_choices_become_three_judgments(session: Session, project: Project) -> None:
    report = bring(session, project, "pandalm.jsonl")
    rows = lines(FIXTURES / "pandalm.jsonl")
    assert report.added["judgments"] == 3 * len(rows)
    assert set(session.scalars(select(User.name))) == {"annotator_1", "annotator_2", "annotator_3"}
    said = {
        (str(row["id"]), name): {"A": -2, "tie": 0, "B": 2}[c] for row in rows for name, c in row["choices"].items()
    }
    stored = session.execute(
        select(Comparison.external_id, User.name, Judgment.preference)
        .join(Comparison, Comparison.id == Judgment.comparison_id)
        .join(User, User.id == Judgment.labeler_id)
    )
    assert {(id_, name): preference for id_, name, preference in stored} == said
    models = {model for row in rows for model in row["models"].split("_")}
    assert set(session.scalars(select(Completion.source))) == models


# --- what users rely on ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["convincing_arguments", "hh_rlhf.jsonl", "pandalm.jsonl"])
def test_importing_again_adds_nothing(session: Session, project: Project, name: str) -> None:
    first = bring(session, project, name)
    tables = (Prompt, Completion, Comparison, Judgment, User)
    before = [count(session, table) for table in tables]
    states = first.states
    again = bring(session, project, name)
    assert [count(session, table) for table in tables] == before
    assert sum(again.added.values()) == 0
    assert again.present["comparisons"] == first.added["comparisons"]
    assert again.present["judgments"] == first.added["judgments"]
    assert again.states == states


def test_one_bad_line_stops_everything_unless_skipped(session: Session, put: Any) -> None:
    good, bad = pair(choice="A"), pair(prompt="Other?", choice="C")
    with pytest.raises(ImportRefused) as refused:
        put(good, bad)
    assert [str(p) for p in refused.value.problems] == ['x.jsonl, line 2: choice: must be "A", "B" or "tie"']
    assert count(session, Prompt) == 0
    report = put(good, bad, skip_invalid=True)
    assert report.added["comparisons"] == 1
    assert [problem.line for problem in report.skipped] == [2]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{not json", "is not valid JSON: key must be a string at column 2"),
        ('{"prompt": ', "is not valid JSON: EOF while parsing a value at column 10"),
        ({"promt": "Why?", "response_a": "x", "response_b": "y"}, "has no prompt or messages"),
        ("[1, 2]", "is not a JSON object"),
        ({"prompt": "Why?", "response_a": "x"}, "has no response_b"),
        (pair(response_a=3), "response_a: Input should be a valid string"),
        (pair(prompt=""), "a message of the prompt is empty"),
        (pair(prompt=[{"role": "user"}]), "without a role or content"),
        (pair(prompt=[{"role": "assistant", "content": "Hi"}]), "the user first"),
        (
            pair(prompt=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]),
            "ends with the assistant's turn",
        ),
        (pair(preference=5), "preference: Input should be less than or equal to 4"),
        (pair(preference=1.5), "preference: Input should be a valid integer"),
        (pair(choice="A", preference=2), "choice and preference name different sides"),
        (pair(response_a="\0"), "holds a NUL character"),
        (pair(split="test"), "split: Input should be 'train'"),
        (pair(choices={"ann": "A"}, labeler="ann", choice="B"), "names one labeler twice"),
    ],
)
def test_bad_lines_are_named_with_their_reason(put: Any, line: Any, reason: str) -> None:
    with pytest.raises(ImportRefused) as refused:
        put(pair(prompt="A good one"), line)
    (problem,) = refused.value.problems
    assert problem.line == 2
    assert reason in problem.reason


def test_a_lone_surrogate_is_a_bad_line(put: Any) -> None:
    with pytest.raises(ImportRefused, match="line 2"):
        put(pair(), '{"prompt": "\\ud800", "response_a": "x", "response_b": "y"}')


def test_files_that_cannot_be_read(session: Session, project: Project, tmp_path: Path) -> None:
    def read(name: str, content: bytes) -> None:
        path = tmp_path / name
        path.write_bytes(content)
        import_files(session, project, [ImportFile(path, name)])

    with pytest.raises(InvalidInput, match=r"empty\.jsonl holds no lines"):
        read("empty.jsonl", b"\n \n")
    with pytest.raises(InvalidInput, match="which fit no known format"):
        read("other.jsonl", b'{"text": "x"}\n')
    with pytest.raises(InvalidInput, match=r"cut\.jsonl\.gz cannot be read"):
        read("cut.jsonl.gz", gzip.compress(b'{"prompt": "x"}\n' * 1000)[:-20])
    with pytest.raises(InvalidInput, match="There is no file"):
        find_files([tmp_path / "nowhere.jsonl"])


def test_byte_order_marks_blank_lines_and_gzip_without_the_name(
    session: Session, project: Project, tmp_path: Path
) -> None:
    path = tmp_path / "prompts"
    path.write_bytes(gzip.compress(b'\xef\xbb\xbf{"prompt": "One?"}\n\n{"prompt": "Two?"}\r\n'))
    report = import_files(session, project, find_files([path]))
    assert report.added["prompts"] == 2


def test_a_known_answer_makes_a_calibration_item(session: Session, put: Any) -> None:
    put(
        {"prompt": "Known?", "response_a": "yes", "response_b": "no", "known_answer": -2},
        {
            "prompt": "Judged?",
            "response_a": "yes",
            "response_b": "no",
            "known_answer": 1,
            "choices": {"Ada": "A", "Bob": "A"},
        },
        {"prompt": "Open?", "response_a": "yes", "response_b": "no"},
    )
    known, judged, open_ = session.scalars(select(Comparison).order_by(Comparison.id)).all()
    assert (known.purpose, known.gold, known.state) == ("calibration", -2, "open")
    assert (judged.purpose, judged.gold, judged.state, judged.judgment_count) == ("calibration", 1, "open", 2)
    assert (open_.purpose, open_.gold) == ("train", None)


def test_a_known_answer_that_comes_again_changes_nothing_and_says_so(session: Session, put: Any) -> None:
    known = {"prompt": "Known?", "response_a": "yes", "response_b": "no"}
    ordinary = {"prompt": "Open?", "response_a": "yes", "response_b": "no"}
    put(known | {"known_answer": -2}, ordinary)
    assert put(known | {"known_answer": -2}, known).notes == []
    other, not_taken = put(known | {"known_answer": 1}, ordinary | {"known_answer": 1}).notes
    assert other.startswith("Calibration items whose known answer here differs: 1. The answer here stays.")
    assert not_taken.startswith("Known answers to pairs that are ordinary comparisons here: 1, not imported.")
    assert session.scalars(select(Comparison.gold).order_by(Comparison.id)).all() == [-2, None]


def test_known_answers_in_one_import_do_not_contradict_each_other(session: Session, put: Any) -> None:
    known = {"prompt": "Known?", "response_a": "yes", "response_b": "no"}
    with pytest.raises(InvalidInput, match="known_answer 1 contradicts an earlier line's -2"):
        put(known | {"known_answer": -2}, known | {"known_answer": 1})
    put(known, known | {"known_answer": 1})  # the line that has one decides
    assert session.scalars(select(Comparison.gold)).one() == 1


def test_a_tie_is_no_known_answer_where_the_rubric_has_none(session: Session, project: Project, put: Any) -> None:
    factories.rubric(session, project, version=2, allow_tie=False)
    with pytest.raises(InvalidInput, match="known_answer 0 is a tie, but the rubric has no tie"):
        put({"prompt": "Known?", "response_a": "yes", "response_b": "no", "known_answer": 0})


def test_a_known_answer_is_on_the_rubrics_scale(put: Any) -> None:
    with pytest.raises(InvalidInput, match="known_answer 4 is outside the rubric's -3 to 3"):
        put({"prompt": "Known?", "response_a": "yes", "response_b": "no", "known_answer": 4})


def test_prompts_with_tags_and_messages(session: Session, put: Any) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    put(
        {"prompt": "Plain?", "domain": "facts", "difficulty": "hard", "split": "calibration"},
        {"messages": chat, "tags": {"domain": "chat", "safety_category": "medical", "colour": "red"}},
        {"prompt": "Held?", "tags": {"topic": "chess", "split": "heldout"}},
    )
    plain, tagged, held = session.scalars(select(Prompt).order_by(Prompt.id)).all()
    assert plain.messages == [{"role": "user", "content": "Plain?"}]
    assert (plain.domain, plain.difficulty, plain.split) == ("facts", "hard", "calibration")
    assert tagged.messages == chat
    assert (tagged.domain, tagged.safety_category, tagged.split) == ("chat", "medical", "train")
    assert (held.domain, held.split) == ("chess", "heldout")
    assert plain.source == "x"


def test_a_prompt_has_one_split(session: Session, put: Any) -> None:
    with pytest.raises(ImportRefused, match=r"puts the prompt into heldout, but x\.jsonl, line 1, put it into train"):
        put({"prompt": "Why?", "split": "train"}, {"prompt": "Why?", "split": "heldout"})
    put({"prompt": "Why?"}, {"prompt": "Why?", "split": "heldout"})
    assert session.scalars(select(Prompt.split)).all() == ["heldout"]
    with pytest.raises(ImportRefused, match="but the project has it in heldout"):
        put({"prompt": "Why?", "split": "train"})


def test_heldout_share_is_by_prompt_and_the_same_in_every_import(session: Session, put: Any, tmp_path: Path) -> None:
    prompts = [{"prompt": f"Question {n}?"} for n in range(1000)]
    report = put(*prompts, heldout_share=0.2)
    assert 150 < report.heldout < 250  # 4 standard deviations of 1000 draws
    other = project_for_import(session, "other", None, None)
    path = tmp_path / "half.jsonl"
    path.write_text("\n".join(json.dumps(prompt) for prompt in reversed(prompts[:500])))
    import_files(session, other, find_files([path]), ImportOptions(heldout_share=0.2))
    found = session.execute(select(Prompt.digest, Prompt.split, Prompt.project_id)).all()
    splits = {(digest, project_id): split for digest, split, project_id in found}
    elsewhere = {digest: split for (digest, project_id), split in splits.items() if project_id == other.id}
    assert len(elsewhere) == 500
    assert all(splits[digest, project_id] == elsewhere[digest] for digest, project_id in splits if digest in elsewhere)


def test_pairs_without_judgments_wait_in_the_queue(session: Session, project: Project, put: Any) -> None:
    put(pair(), pair(prompt="Held?", split="heldout"), pair(prompt="Regression?", split="regression"))
    found = session.scalars(select(Comparison).order_by(Comparison.id)).all()
    assert [(c.state, c.overlap, c.judgment_count, c.purpose) for c in found] == [
        ("open", project.overlap, 0, "train"),
        ("open", project.overlap, 0, "heldout"),
        ("open", project.overlap, 0, "heldout"),
    ]


def test_judgments_find_their_pair_in_the_project_too(session: Session, put: Any) -> None:
    put(pair(pair_id="p1"), pair(pair_id=2, prompt="Other?"))
    report = put(
        {"pair_id": "p1", "labeler": "ann", "preference": 3},
        {"pair_id": "p1", "labeler": "bob", "choice": "b", "rationale": "shorter", "duration_ms": 1500},
        {"pair_id": 2, "labeler": "ann", "choice": "tie", "submitted_at": "2024-05-01T10:00:00"},
        name="answers.jsonl",
    )
    assert report.added["judgments"] == 3
    first, second = session.scalars(
        select(Comparison).order_by(Comparison.id).execution_options(populate_existing=True)
    ).all()
    assert (first.state, first.consensus, first.agreement) == ("settled", 2.5, 1.0)
    assert (second.state, second.judgment_count, second.overlap) == ("open", 1, 2)
    with pytest.raises(ImportRefused, match="there is no pair with pair_id p9"):
        put({"pair_id": "p9", "labeler": "ann", "choice": "A"})


def test_more_judgments_settle_a_comparison_anew(session: Session, put: Any) -> None:
    put(pair(pair_id="p1", choices={"ann": "A", "bob": "A"}))
    put({"pair_id": "p1", "labeler": "cid", "choice": "B"}, {"pair_id": "p1", "labeler": "dan", "choice": "B"})
    comparison = session.scalars(select(Comparison).execution_options(populate_existing=True)).one()
    assert (comparison.judgment_count, comparison.overlap, comparison.state) == (4, 4, "in_review")
    assert comparison.agreement == pytest.approx(2 / 6)


def test_contradictions_between_lines(put: Any) -> None:
    with pytest.raises(ImportRefused, match="pair_id p1 is already another pair's"):
        put(pair(pair_id="p1"), pair(pair_id="p1", response_a="Something else."))
    with pytest.raises(ImportRefused, match="ann already answered this pair with -2, now with 2"):
        put(pair(choices={"ann": "A"}), pair(choices={"ann": "B"}))
    report = put(pair(choices={"ann": "A"}), pair(choices={"ann": "A"}))
    assert (report.added["judgments"], report.present["judgments"], report.present["comparisons"]) == (1, 1, 1)


def test_a_choice_without_strength_is_the_rubrics_middle_one(session: Session, tmp_path: Path) -> None:
    project = factories.project(session)
    factories.rubric(session, project, strengths=1)
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(pair(choice="B")))
    import_files(session, project, find_files([path]))
    assert session.scalars(select(Judgment.preference)).all() == [1]
    path.write_text(json.dumps(pair(prompt="Other?", preference=2)))
    with pytest.raises(ImportRefused, match="preference 2 is outside the rubric's -1 to 1"):
        import_files(session, project, find_files([path]))


def test_what_is_known_is_judged_by_the_rubric_version_it_has(session: Session, project: Project, put: Any) -> None:
    old = pair(pair_id="old", labeler="ann", choice="A")
    put(old)
    factories.rubric(session, project, version=2, strengths=1, allow_tie=False, aspects=[])
    again = put(old)
    assert (again.added.total(), again.present["judgments"]) == (0, 1)
    put(
        {"pair_id": "old", "labeler": "bob", "choice": "B"},
        {"pair_id": "old", "labeler": "cid", "preference": -3, "aspects": {"style": -2}},
        name="more.jsonl",
    )
    put(pair(pair_id="new", prompt="How?", labeler="bob", choice="B"))
    with pytest.raises(ImportRefused, match="preference 2 is outside the rubric's -1 to 1"):
        put(pair(pair_id="new", prompt="How?", labeler="cid", preference=2))
    found = session.execute(
        select(Comparison.external_id, User.name, Rubric.version, Judgment.preference, Judgment.aspects)
        .join(Judgment, Judgment.comparison_id == Comparison.id)
        .join(Rubric, Rubric.id == Judgment.rubric_id)
        .join(User, User.id == Judgment.labeler_id)
        .order_by(Judgment.id)
    )
    assert [tuple(row) for row in found] == [
        ("old", "ann", 1, -2, {}),
        ("old", "bob", 1, 2, {}),
        ("old", "cid", 1, -3, {"style": -2}),
        ("new", "bob", 2, 1, {}),
    ]


def test_who_was_removed_does_not_come_back_with_the_file(session: Session, project: Project, put: Any) -> None:
    told = [
        pair(choices={"ann": "A", "spam": "B"}),
        {"prompt": "How?", "completion": "So.", "label": True, "labeler": "spam"},
    ]
    put(told[0], name="pairs.jsonl")
    put(told[1], name="thumbs.jsonl")
    spam = session.scalars(select(User.id).where(User.name == "spam")).one()
    labelers.remove(session, project, factories.user(session, "admin"), spam, "Spam")
    again = [put(told[0], name="pairs.jsonl"), put(told[1], name="thumbs.jsonl")]
    assert [report.added.total() for report in again] == [0, 0]
    for report in again:
        assert any("spam was removed from this project; their judgments were left out" in note for note in report.notes)
    live = select(User.name).join(Judgment, Judgment.labeler_id == User.id).where(Judgment.superseded_at.is_(None))
    assert session.scalars(live).all() == ["ann"]
    assert count(session, Thumb, Thumb.superseded_at.is_(None)) == 0


def test_what_is_asked_again_stays_known(session: Session, project: Project, put: Any) -> None:
    put(pair(choices={"ann": "A", "bob": "A"}))
    newer = factories.rubric(session, project, version=2)
    form = RelabelForm(rubric=newer.id, overlap=2)
    relabeling.relabel(session, project, factories.user(session, "admin"), form, expected=1)
    again = put(pair(choices={"ann": "A", "bob": "A"}))
    assert (again.added.total(), again.present["judgments"]) == (0, 2)


def test_equal_responses_stay_two(session: Session, put: Any) -> None:
    report = put(pair(response_b="Because.", choice="tie"), pair(response_b="Because.", pair_id="again"))
    assert "Pairs with two equal responses: 2, imported as they are." in report.notes
    assert count(session, Completion) == 2
    assert report.added["comparisons"] == 2


def test_a_trl_file_comes_back_in(session: Session, put: Any) -> None:
    prompt = [{"role": "user", "content": "Why?"}]
    good, bad = ([{"role": "assistant", "content": text}] for text in ("Because.", "No."))
    put({"prompt": prompt, "chosen": good, "rejected": bad}, {"prompt": "Plain?", "chosen": "yes", "rejected": "no"})
    assert session.scalars(select(Prompt.messages).order_by(Prompt.id)).all() == [
        prompt,
        [{"role": "user", "content": "Plain?"}],
    ]
    assert set(session.scalars(select(Completion.text))) == {"Because.", "No.", "yes", "no"}


def test_what_an_import_leaves_behind(session: Session, project: Project) -> None:
    bring(session, project, "pandalm.jsonl")
    users = session.scalars(select(User)).all()
    assert {(u.kind, u.email, u.password_hash, u.is_admin) for u in users} == {("imported", None, None, False)}
    rubric = session.scalars(select(Rubric)).one()
    assert rubric.version == 1
    assert "imported" in rubric.guideline
    event = session.scalars(select(AuditEvent).where(AuditEvent.action == "data.imported")).one()
    assert event.details["added"]["judgments"] == 36
    assert event.details["files"] == ["pandalm.jsonl"]


def test_one_name_is_one_labeler_in_a_project_and_another_elsewhere(session: Session, put: Any, tmp_path: Path) -> None:
    put(pair(choices={"ann": "A"}))
    put(pair(prompt="Other?", choices={"ann": "B"}))
    assert count(session, User) == 1
    other = project_for_import(session, "other", None, None)
    import_files(session, other, find_files([tmp_path / "x.jsonl"]))
    assert count(session, User) == 2


def test_two_imports_at_once_add_everything_once(session: Session, engine: Engine, project: Project) -> None:
    session.commit()

    def run() -> Counter[str]:
        with make_session_factory(engine)() as own, own.begin():
            return bring(own, own.get_one(Project, project.id), "pandalm.jsonl").added

    with ThreadPoolExecutor(2) as pool:
        added = [future.result(timeout=60) for future in [pool.submit(run), pool.submit(run)]]
    assert sorted(counter["judgments"] for counter in added) == [0, 36]
    assert count(session, Judgment) == 36
    assert count(session, User) == 3


def test_more_judgments_than_a_comparison_takes_are_bad_lines(put: Any) -> None:
    with pytest.raises(ImportRefused, match="more than 1,000 judgments"):
        put(pair(choices={f"labeler {n}": "A" for n in range(1001)}))


# --- names and times -------------------------------------------------------------------------------------------------


def test_a_labeler_is_one_however_the_name_is_typed(session: Session, put: Any) -> None:
    names = ["Zo\u00e9", "Zoe\u0301", "Zo\u00e9 ", " Zo\u00e9", "Zo\u00e9\u200b"]
    put(*(pair(pair_id=n, prompt=f"Why {n}?", labeler=name, choice="A") for n, name in enumerate(names)))
    put(*({"pair_id": 0, "labeler": name, "choice": "A"} for name in names), name="again.jsonl")
    put(*(pair(prompt=f"How {n}?", choice="B") for n in range(2)), name="Zoe\u0301.jsonl")  # named by the file
    assert session.scalars(select(User.name).where(User.kind == "imported")).all() == ["Zo\u00e9"]
    assert count(session, Judgment) == len(names) + 2
    with pytest.raises(ImportRefused, match="names one labeler twice"):
        put(pair(prompt="Who?", choices={"Zo\u00e9": "A", "Zoe\u0301": "B"}))


@pytest.mark.parametrize(
    ("at", "told"),
    [
        ("0001-01-01T00:00:00+05:00", "before 1970"),
        ("1969-12-31T23:59:59Z", "before 1970"),
        ("9999-12-31T23:59:59-05:00", "is in the future"),
        ("9999-12-31T23:59:59", "is in the future"),
        ("2400-02-30T00:00:00Z", "day value is outside expected range"),
    ],
)
def test_a_time_that_cannot_be_is_refused(session: Session, put: Any, at: str, told: str) -> None:
    """The page of a labeler used to fail if a time had a year that Python cannot represent."""
    with pytest.raises(ImportRefused, match=f"submitted_at: .*{told}"):
        put(pair(labeler="ann", choice="A", submitted_at=at))
    assert count(session, Judgment) == 0


def test_the_first_and_last_times_that_can_be_are_taken_and_shown(
    session: Session, project: Project, put: Any, sign_in: Any
) -> None:
    soon = datetime.now(UTC) + timedelta(hours=14)
    times = ["1970-01-01T00:00:00Z", "1970-01-01T05:00:00+05:00", soon.isoformat()]
    put(*(pair(prompt=f"Why {n}?", labeler="ann", choice="A", submitted_at=at) for n, at in enumerate(times)))
    labeler_id = session.scalars(select(User.id).where(User.name == "ann")).one()
    session.commit()
    client = sign_in("admin")
    for page in ("labelers", f"labelers/{labeler_id}", "agreement", "data", ""):
        assert client.get(f"/projects/{project.slug}/{page}".rstrip("/")).status_code == 200, page


def test_the_planner_is_told_of_rows_that_came_in_bulk(
    session: Session, put: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "MANY", 10)
    put(*(pair(prompt=f"Question {n}?", pair_id=f"p{n}") for n in range(12)))
    known = text("SELECT reltuples FROM pg_class WHERE relname = 'comparison'")
    assert session.scalar(known) == 12

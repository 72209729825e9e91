"""The export, read back by the libraries that it is made for."""

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from app.datasets.export import COLUMNS, Split, parse_columns, write_preferences
from app.datasets.service import no_progress
from app.domain.replay import Reading
from app.errors import InvalidInput
from app.labelers.queries import last_judgments
from app.labeling.settling import settle
from app.models import Adjudication, Comparison, Judgment, Project
from app.models.comparison import IN_CONFLICT
from app.review import views
from app.rounds.snapshots import chosen
from tests import factories
from tests.rounds.loop import pair_rows
from tests.trainer.conftest import build_model


def comparison(session: Session, project: Project, *preferences: int, **values: Any) -> Comparison:
    """Add a settled comparison with these judgments."""
    values = {"state": "settled", "overlap": max(len(preferences), 1)} | values
    row = factories.comparison(session, project, **values)
    for preference in preferences:
        factories.judgment(session, row, preference=preference)
    return row


def export(session: Session, project: Project, path: Path, **options: Any) -> list[dict[str, Any]]:
    write_preferences(session, project, path, progress=no_progress, **options)
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in content.splitlines()]


@pytest.fixture
def project(session: Session) -> Project:
    return factories.project(session)


def test_chosen_and_rejected_follow_the_judgments(session: Session, project: Project, tmp_path: Path) -> None:
    prompt = factories.prompt(session, project, "Why?")
    comparison(session, project, 1, 3, prompt=prompt, texts=("a", "b"))
    comparison(session, project, -2, -1, 1, prompt=prompt, texts=("c", "d"))
    message = [{"role": "user", "content": "Why?"}]
    assert export(session, project, tmp_path / "x.jsonl") == [
        {
            "prompt": message,
            "chosen": [{"role": "assistant", "content": "b"}],
            "rejected": [{"role": "assistant", "content": "a"}],
        },
        {
            "prompt": message,
            "chosen": [{"role": "assistant", "content": "c"}],
            "rejected": [{"role": "assistant", "content": "d"}],
        },
    ]


@pytest.mark.parametrize(("preferences", "winner"), [((0, 0, 0, 0, 1), 0), ((-1,) * 5 + (3,) * 2, -1)])
def test_training_export_pages_and_figures_say_the_same_winner(
    session: Session, project: Project, tmp_path: Path, preferences: tuple[int, ...], winner: int
) -> None:
    """Four ties and one vote for B; five slightly for A and two strongly for B, whose mean strength favors B."""
    row = comparison(session, project, *preferences, state="open", texts=("a", "b"))
    settle(session, [row.id])
    session.refresh(row)
    row.state, row.reward_p_b = "settled", 1.0  # as if no review were needed; the reward model is sure of B
    session.flush()
    assert chosen(session, project.id, Reading()).winner.tolist() == [winner]
    (as_read,) = pair_rows(session, project)
    assert as_read.agreement == round(preferences.count(min(preferences)) / len(preferences), 6)
    assert as_read.preference * winner >= 0
    exported = export(session, project, tmp_path / "x.jsonl", columns=COLUMNS)
    assert [line["chosen"][0]["content"] for line in exported] == ({-1: ["a"], 0: []}[winner])
    assert all(line["p"] > 0.5 for line in exported)
    labeler = session.scalars(select(Judgment.labeler_id)).first() or 0
    assert last_judgments(session, project.id, labeler)[0].winner == winner
    # A reward model that is sure of B conflicts only with comparisons in which people chose A.
    conflicts = session.scalars(text(f"SELECT id FROM comparison WHERE {IN_CONFLICT}")).all()
    assert views.is_conflict(row) == bool(conflicts) == (winner == -1)


def test_verdicts_stand_in_place_and_ties_and_open_ones_are_counted(
    session: Session, project: Project, tmp_path: Path
) -> None:
    decided = comparison(session, project, 3, 3, -1, state="adjudicated", texts=("a", "b"))
    reviewer = factories.user(session, "admin")
    session.add(Adjudication(comparison_id=decided.id, reviewer_id=reviewer.id, verdict=-2))
    comparison(session, project, 2, -2)
    comparison(session, project, 0)
    comparison(session, project, 2, state="open", overlap=2)
    comparison(session, project, 2, -1, state="in_review")
    comparison(session, project, 2, state="withdrawn")
    comparison(session, project, 2, purpose="repeat", repeat_of_id=decided.id)
    session.flush()
    counts = write_preferences(session, project, tmp_path / "x.jsonl", progress=no_progress)
    assert (counts.written, counts.ties, counts.undecided) == (1, 2, 2)
    (line,) = export(session, project, tmp_path / "x.jsonl")
    assert line["chosen"][0]["content"] == "a"


def test_further_columns(session: Session, project: Project, tmp_path: Path) -> None:
    prompt = factories.prompt(session, project, domain="facts", split="heldout")
    row = comparison(session, project, -3, -1, 1, prompt=prompt)
    (line,) = export(session, project, tmp_path / "x.jsonl", columns=COLUMNS)
    assert line["margin"] == pytest.approx(1.0)
    assert line["p"] == pytest.approx((2 + 0.5) / 4)  # two of three for A, smoothed by half a vote each
    assert (line["comparison_id"], line["prompt_id"], len(line["judgment_ids"])) == (row.id, prompt.id, 3)
    assert line["slices"] == {"domain": "facts", "difficulty": "easy", "safety_category": "", "split": "heldout"}
    assert parse_columns("all") == COLUMNS
    assert parse_columns(" margin, ids ") == ("margin", "ids")
    with pytest.raises(InvalidInput, match="There is no column weight"):
        parse_columns("weight")


def test_splits_and_other_projects_stay_apart(session: Session, project: Project, tmp_path: Path) -> None:
    for split in ("train", "heldout"):
        prompt = factories.prompt(session, project, split, split=split)
        comparison(session, project, 1, prompt=prompt)
    comparison(session, factories.project(session), 1)
    found = {
        split: export(session, project, tmp_path / "x.jsonl", split=split) for split in ("all", "train", "heldout")
    }
    assert [len(lines) for lines in found.values()] == [2, 1, 1]
    assert found["heldout"][0]["prompt"][0]["content"] == "heldout"


def test_a_failure_leaves_the_old_file(session: Session, project: Project, tmp_path: Path) -> None:
    comparison(session, project, 1)
    path = tmp_path / "x.jsonl"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_preferences(session, project, path, progress=fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(InvalidInput, match="There is no folder"):
        write_preferences(session, project, tmp_path / "no" / "x.jsonl", progress=no_progress)


def test_the_same_comparisons_give_the_same_bytes(session: Session, project: Project, tmp_path: Path) -> None:
    comparison(session, project, 1)
    paths = [tmp_path / "one.jsonl.gz", tmp_path / "two.jsonl.gz"]
    for path in paths:
        assert len(export(session, project, path)) == 1
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize("columns", [(), COLUMNS])
def test_trls_dpo_trainer_trains_on_it(
    session: Session, project: Project, tmp_path: Path, columns: tuple[str, ...]
) -> None:
    chat = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Why is the sky blue?"},
    ]
    prompt = factories.prompt(session, project, messages=chat, safety_category="medical")
    comparison(session, project, 2, 1, prompt=prompt, texts=("No.", "Scattering."))
    comparison(session, project, -2, texts=("Good", ""))
    export(session, project, tmp_path / "x.jsonl.gz", columns=columns)
    build_model(tmp_path / "model")

    data = datasets.load_dataset(
        "json", data_files=str(tmp_path / "x.jsonl.gz"), split="train", cache_dir=str(tmp_path / "cache")
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(tmp_path / "model"),
        args=DPOConfig(
            output_dir=str(tmp_path / "out"),
            max_steps=1,
            per_device_train_batch_size=2,
            use_cpu=True,
            bf16=False,
            report_to="none",
            save_strategy="no",
        ),
        train_dataset=data,
        processing_class=tokenizer,
    )
    first = trainer.train_dataset[0]
    whole = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert tokenizer.decode(first["prompt_ids"]) == whole
    assert tokenizer.decode(first["chosen_ids"]) == "Scattering.<|im_end|>\n"
    assert tokenizer.decode(first["rejected_ids"]) == "No.<|im_end|>\n"
    # Policy and reference are equal at the start, so the first loss is -log(1/2).
    assert trainer.train().training_loss == pytest.approx(0.6931, abs=1e-3)


def test_what_evaluates_policies_is_in_no_file_for_trainers(session: Session, project: Project, tmp_path: Path) -> None:
    prompt = factories.prompt(session, project, split="heldout")
    for purpose in ("heldout", "human_eval"):
        comparison(session, project, 2, prompt=prompt, purpose=purpose, texts=(f"{purpose} a", f"{purpose} b"))
    splits: list[tuple[Split, int]] = [("all", 1), ("heldout", 1), ("train", 0)]
    for split, evaluating in splits:
        counts = write_preferences(session, project, tmp_path / "x.jsonl", split=split, progress=no_progress)
        assert counts.evaluating == evaluating
        assert "human_eval" not in (tmp_path / "x.jsonl").read_text()
    counts = write_preferences(session, project, tmp_path / "x.jsonl", progress=no_progress)
    assert counts.describe() == (
        "1 comparisons. Left out: 0 ties, 0 still open or in review, 1 that evaluate policies."
    )

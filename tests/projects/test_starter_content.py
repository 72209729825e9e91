"""The starter project's files must be complete, tagged and free of leaks between splits."""

import json
import re
from collections import Counter
from importlib import resources
from typing import Any

import pytest

STARTER = resources.files("app.projects") / "starter_content"
SPLITS = {"train", "heldout", "calibration", "regression"}
DOMAINS = {"helpfulness", "factual", "instruction", "safety", "over_refusal"}
DIFFICULTIES = {"easy", "hard", "adversarial"}
# Two prompts sharing more of their words than this are the same question to a labeler and to a model.
NEAR_DUPLICATE = 0.7


def read_rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (STARTER / name).read_text(encoding="utf-8").splitlines()]


def normalised(row: dict[str, Any]) -> str:
    """Return the whole conversation without case, punctuation and spaces."""
    return " ".join(f"{m['role']} {words(m['content'])}" for m in row["messages"])


def words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def question_words(row: dict[str, Any]) -> set[str]:
    """Return the words of the last turn, without the request for a short answer that most prompts share."""
    asked = words(row["messages"][-1]["content"])
    asked = re.sub(r"\b(answer )?in one (short )?sentence\b|\bone sentence( please)?\b", "", asked)
    return set(asked.split())


@pytest.fixture(scope="module")
def prompts() -> list[dict[str, Any]]:
    return read_rows("prompts.jsonl")


@pytest.fixture(scope="module")
def calibration() -> list[dict[str, Any]]:
    return read_rows("calibration.jsonl")


def test_rows_hold_exactly_the_promised_fields_and_values(prompts, calibration):
    for row in prompts:
        assert set(row) == {"messages", "split", "domain", "difficulty", "safety_category"}
        assert row["split"] in SPLITS
        is_safety = row["domain"] in {"safety", "over_refusal"}
        assert isinstance(row["safety_category"], str) == is_safety, row
    for row in calibration:
        assert set(row) == {"messages", "response_a", "response_b", "gold", "domain", "difficulty"}
    for row in prompts + calibration:
        assert row["domain"] in DOMAINS
        assert row["difficulty"] in DIFFICULTIES


def test_counts_by_split(prompts, calibration):
    assert Counter(row["split"] for row in prompts) == {"train": 40, "heldout": 20, "calibration": 6, "regression": 6}
    assert len(calibration) == 6


def test_every_domain_and_difficulty_is_in_train_and_heldout(prompts):
    for split in ("train", "heldout"):
        rows = [row for row in prompts if row["split"] == split]
        assert {row["domain"] for row in rows} == DOMAINS
        assert {row["difficulty"] for row in rows} == DIFFICULTIES
    heldout = Counter(row["domain"] for row in prompts if row["split"] == "heldout")
    assert len(set(heldout.values())) == 1, f"held-out is not balanced over the domains: {heldout}"


def test_conversations_alternate_and_end_with_the_user(prompts, calibration):
    for row in prompts + calibration:
        roles = [message["role"] for message in row["messages"]]
        turns = roles[1:] if roles[0] == "system" else roles
        assert turns == [("user", "assistant")[i % 2] for i in range(len(turns))], row
        assert turns[-1] == "user", row
        for message in row["messages"]:
            assert set(message) == {"role", "content"}
            assert message["content"].strip() == message["content"] != ""
    assert any(len(row["messages"]) >= 3 for row in prompts)
    assert any(row["messages"][0]["role"] == "system" for row in prompts)


def test_no_prompt_occurs_twice(prompts):
    counts = Counter(normalised(row) for row in prompts)
    assert [text for text, n in counts.items() if n > 1] == []


def test_heldout_shares_no_question_with_train(prompts):
    train = [row for row in prompts if row["split"] == "train"]
    for held in (row for row in prompts if row["split"] == "heldout"):
        ours = question_words(held)
        for row in train:
            theirs = question_words(row)
            overlap = len(ours & theirs) / len(ours | theirs)
            assert overlap < NEAR_DUPLICATE, (held["messages"], row["messages"])


def test_calibration_golds_are_on_the_scale_and_on_both_sides(calibration):
    golds = [row["gold"] for row in calibration]
    assert all(isinstance(gold, int) and 1 <= abs(gold) <= 3 for gold in golds), "a tie has no known better side"
    assert sum(gold < 0 for gold in golds) == sum(gold > 0 for gold in golds) > 0


def test_calibration_responses_differ_and_length_does_not_give_the_answer_away(calibration):
    longer_wins = 0
    for row in calibration:
        assert words(row["response_a"]) != words(row["response_b"])
        b_is_longer = len(row["response_b"]) > len(row["response_a"])
        longer_wins += b_is_longer == (row["gold"] > 0)
    assert 0 < longer_wins < len(calibration)


def test_calibration_comparisons_answer_the_calibration_prompts(prompts, calibration):
    tagged = {normalised(row): row for row in prompts if row["split"] == "calibration"}
    assert {normalised(row) for row in calibration} == set(tagged)
    for row in calibration:
        prompt = tagged[normalised(row)]
        assert (row["domain"], row["difficulty"]) == (prompt["domain"], prompt["difficulty"])


def test_rubric_is_short_enough_to_read_before_labeling():
    text = (STARTER / "rubric.md").read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert 200 < len(text.split()) < 500
    for choice in ("Much better", "Better", "Slightly better", "Tie"):
        assert f"| {choice} |" in text

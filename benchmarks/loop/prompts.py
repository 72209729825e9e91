"""The prompts of the benchmark: training prompts, and two held-out sets, similar to them and different from them."""

import json
from pathlib import Path
from typing import NamedTuple

from app.artifacts import ArtifactStore
from app.projects import starter
from app.rounds.snapshots import write_lines
from app.rows import PromptRow

KINDS = ("like", "unlike")
STARTER = Path(starter.__file__).parent / "starter_content" / "prompts.jsonl"


class Prompts(NamedTuple):
    """Prompts by use. Ids are unique over all sets, and a prompt's id never changes.

    Attributes:
        train: the starter project's train prompts, for sampling and training policies.
        heldout: the starter project's held-out prompts, for held-out comparisons.
        measured: prompts for win rates; their slice `split` is `like` or `unlike`.
    """

    train: list[PromptRow]
    heldout: list[PromptRow]
    measured: list[PromptRow]


def load(count: int = 80) -> Prompts:
    """Load all prompts, with the first `count` of each measured set."""
    starters = [json.loads(line) for line in STARTER.read_text().splitlines()]
    by_split = {
        split: [
            PromptRow(id=number, messages=tuple(row["messages"]), slices={"domain": row["domain"], "split": split})
            for number, row in enumerate(starters, 1)
            if row["split"] == split
        ]
        for split in ("train", "heldout")
    }
    measured = []
    for number, kind in enumerate(KINDS, 1):
        lines = Path(__file__).with_name(f"{kind}.jsonl").read_text().splitlines()[:count]
        rows = [json.loads(line) for line in lines]
        measured += [
            PromptRow(id=1000 * number + i, messages=tuple(row["messages"]), slices={"split": kind})
            for i, row in enumerate(rows, 1)
        ]
    return Prompts(by_split["train"], by_split["heldout"], measured)


def write(store: ArtifactStore, rows: list[PromptRow]) -> str:
    """Write prompts to a file named after its content, and return its location."""
    return write_lines(store, "prompts", rows, compressed=False)[1]


def question(row: PromptRow) -> str:
    """Return the part of a prompt that simulated labelers read: the user's last message."""
    return row.messages[-1]["content"]

"""What rounds came to, one beside the other: what people said, what the rounds' reward models said, and the verdict."""

import json
import math
from collections import defaultdict
from typing import NamedTuple

from sqlalchemy.orm import Session

from app.domain.consensus import who_won
from app.domain.intervals import FEWEST, Interval, clustered_share
from app.domain.slices import of_prompt
from app.domain.verdicts import Verdict, verdict
from app.models import Project, Round
from app.rounds import queries, result_queries
from app.rounds.adoption import DIFFERENCE, difference_of

# KL on pages is the estimate that is never negative (k3): of a few responses, as in a slice, the other one (k1) may be.
ACCURACY, KL, REWARD = "eval_accuracy", "eval_objective/kl_k3", "eval_objective/scores"
_OF_EVALUATION = (KL, REWARD, "eval_before/scores", DIFFERENCE, f"{DIFFERENCE}_low", f"{DIFFERENCE}_high")


class WinRate(NamedTuple):
    """How often people preferred the new policy's response to the previous one's; a tie is half a win."""

    value: float
    low: float
    high: float
    n: int
    prompts: int

    @property
    def interval(self) -> Interval | None:
        """None for fewer than `FEWEST` prompts, which tell nothing of others."""
        return Interval(self.value, self.low, self.high) if self.prompts >= FEWEST else None


def win_rates(session: Session, round_ids: list[int]) -> dict[tuple[int, str], WinRate]:
    """By round and slice ("" is all), with prompts as clusters."""
    counted: dict[tuple[int, str], dict[int, tuple[float, float]]] = defaultdict(dict)
    for row in result_queries.human_eval(session, round_ids):
        tags = of_prompt(row.domain, row.difficulty, row.safety_category, "")
        for name in ["", *(f"{kind}={value}" for kind, value in tags.items())]:
            clusters = counted[row.round_id, name]
            won, cases = clusters.get(row.prompt_id, (0.0, 0.0))
            winner = who_won(row.consensus, row.p_b, row.p_tie) or 0
            added = row.n * (1 + winner * (1 if row.new_is_b else -1)) / 2
            clusters[row.prompt_id] = won + added, cases + row.n
    found = {}
    for key, clusters in counted.items():
        if interval := clustered_share(list(clusters.values())):
            found[key] = WinRate(*interval, int(sum(cases for _, cases in clusters.values())), len(clusters))
    return found


def verdict_of(session: Session, round_: Round) -> Verdict | None:
    """The verdict on a round; none before it is done, or where nobody has measured it."""
    if round_.state != "done":
        return None
    wins = win_rates(session, [round_.id]).get((round_.id, ""))
    values = result_queries.round_values(session, [round_.id], _OF_EVALUATION)
    difference = difference_of({row.name: row.value for row in values if row.kind == "evaluate" and not row.slice})
    return verdict(wins and wins.interval, wins.n if wins else 0, difference)


class RoundRow(NamedTuple):
    """A round among the others, for all prompts or one slice of them."""

    round: Round
    judgments: int
    pairs: int
    accuracy: float | None  # of the reward model on comparisons it did not train on
    kl: float | None  # nats a response, to the reference model
    reward: float | None  # mean score of the new policy's responses
    reward_before: float | None  # by the same reward model, of the policy before
    difference: Interval | None  # of the two
    wins: WinRate | None

    @property
    def verdict(self) -> Verdict | None:
        return verdict(self.wins and self.wins.interval, self.wins.n if self.wins else 0, self.difference)


class Loop(NamedTuple):
    """All rounds of a project, oldest first, over all prompts and by slice."""

    rows: list[RoundRow]
    slices: dict[str, list[RoundRow]]

    @property
    def chart(self) -> str:
        """What the charts draw, as JSON."""
        columns = {
            "accuracy": [row.accuracy for row in self.rows],
            "kl": [row.kl for row in self.rows],
        }
        for name, intervals in (
            ("difference", [row.difference for row in self.rows]),
            ("win", [row.wins and row.wins.interval for row in self.rows]),
        ):
            for part in Interval._fields:
                columns[f"{name}_{part}"] = [getattr(each, part) if each else None for each in intervals]
        return json.dumps({"round": [row.round.number for row in self.rows]} | columns)


def loop(session: Session, project: Project) -> Loop:
    rounds = queries.rounds(session, project.id)[::-1]
    ids = [round_.id for round_ in rounds]
    values: dict[tuple[int, str], dict[str, float]] = defaultdict(dict)  # by round and slice
    for row in result_queries.round_values(session, ids, (ACCURACY, *_OF_EVALUATION)):
        if math.isfinite(row.value) and (row.name == ACCURACY) == (row.kind == "reward"):  # JSON has no NaN
            values[row.round_id, row.slice][row.name] = row.value
    wins = win_rates(session, ids)
    snapshots = result_queries.snapshots_of(session, ids)

    def row_of(round_: Round, slice_: str) -> RoundRow:
        counts, found = snapshots.get(round_.id, {}), values.get((round_.id, slice_), {})
        return RoundRow(
            round=round_,
            judgments=counts.get("judgments", 0),
            pairs=counts.get("train", 0) + counts.get("heldout", 0),
            accuracy=found.get(ACCURACY),
            kl=found.get(KL),
            reward=found.get(REWARD),
            reward_before=found.get("eval_before/scores"),
            difference=difference_of(found),
            wins=wins.get((round_.id, slice_)),
        )

    names = sorted({name for _, name in values if name} | {name for _, name in wins if name})
    return Loop(
        rows=[row_of(round_, "") for round_ in rounds],
        slices={name: [row_of(round_, name) for round_ in rounds] for name in names if not name.startswith("split=")},
    )

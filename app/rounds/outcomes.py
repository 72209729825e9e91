"""Results of rounds: people's preferences, the rounds' reward models' figures, and the verdict."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy.orm import Session

from app.domain.intervals import FEWEST, Interval, clustered_share
from app.domain.sequence import Preference, preference, preferred
from app.domain.slices import of_prompt
from app.domain.verdicts import Verdict, verdict
from app.domain.yardstick import METRICS as YARDSTICK_METRICS
from app.domain.yardstick import Yardstick, yardstick
from app.models import Project, Round
from app.rounds import queries, result_queries
from app.rounds.adoption import DIFFERENCE, difference_of

# KL on pages is the estimate that is never negative (k3). The other one (k1) may be negative with few responses, as in
# a slice.
ACCURACY, KL, REWARD = "eval_accuracy", "eval_objective/kl_k3", "eval_objective/scores"
_DIFFERENCE = (DIFFERENCE, f"{DIFFERENCE}_low", f"{DIFFERENCE}_high")
_OF_EVALUATION = (KL, REWARD, "eval_before/scores", *_DIFFERENCE, "eval_prompts")
SHOWN = 100  # rounds on a page
LIKE = 1.1  # lengths are similar if the longer response is at most this many times as long


class WinRate(NamedTuple):
    """How often people preferred the new policy's response to another policy's; a tie counts as half a win."""

    value: float
    low: float
    high: float
    n: int  # judgments
    prompts: int
    said: Preference | None = None  # for all prompts, with the interval shown here; None for a slice

    @property
    def interval(self) -> Interval | None:
        """The interval; None for fewer than `FEWEST` prompts, which say nothing about others."""
        return Interval(self.value, self.low, self.high) if self.prompts >= FEWEST else None


class Rivals(NamedTuple):
    """How people compare a round's new policy with the previous one and with the first one, which may be the same.

    waiting: prompts for the previous policy that still lack a judgment, so they do not count yet.
    """

    before: WinRate | None = None
    first: WinRate | None = None
    waiting: int = 0


def win_rates(session: Session, rounds: Sequence[Round], *, slices: bool = True) -> dict[tuple[int, str], Rivals]:
    """Return win rates by (round id, slice), with slice "" for all prompts; without `slices`, only for all prompts.

    For all prompts the interval is a confidence sequence, valid after every judgment; a slice's interval is valid for a
    single look.
    """
    counted: dict[tuple[int, int, str], list[Any]] = defaultdict(list)
    named: dict[int, set[str]] = defaultdict(set)  # slices by round
    for row in result_queries.evaluated(session, [round_.id for round_ in rounds]):
        tags = of_prompt(row.domain, row.difficulty, row.safety_category, "") if slices else {}
        for name in ["", *(f"{kind}={value}" for kind, value in tags.items() if row.judgments)]:
            counted[row.round_id, row.rival_id, name].append(row)
            named[row.round_id].add(name)
    found = {}
    for round_ in rounds:
        for name in named[round_.id]:
            before = counted[round_.id, round_.policy_before_id, name]
            first = counted[round_.id, round_.reference_id, name]
            waiting = sum(not row.is_whole for row in before)
            found[round_.id, name] = Rivals(_win_rate(before, name), _win_rate(first, name), waiting)
    return found


def _win_rate(rows: Sequence[Any], slice_: str) -> WinRate | None:
    entered = [row for row in rows if row.is_whole and row.judgments]
    values, n = [row.value for row in entered], sum(row.judgments for row in entered)
    if slice_:
        interval = clustered_share([(value, 1) for value in values])
        return interval and WinRate(*interval, n, len(values))
    said = preference(values)
    return said and WinRate(said.value, said.low, said.high, n, len(values), said)


def people_on(session: Session, round_: Round) -> Rivals:
    """Return people's preferences for the round's new policy, over all prompts."""
    return win_rates(session, [round_], slices=False).get((round_.id, ""), Rivals())


def verdict_of(session: Session, round_: Round, people: Rivals) -> Verdict | None:
    """Return the verdict on a round; None before it is done, or if nobody has measured it.

    Args:
        people: the result of `people_on`.
    """
    if round_.state != "done":
        return None
    values = result_queries.round_values(session, [round_.id], _OF_EVALUATION)
    difference = difference_of({row.name: row.value for row in values if row.kind == "evaluate" and not row.slice})
    return verdict(people.before and people.before.said, difference)


def by_length(session: Session, round_: Round) -> dict[str, WinRate]:
    """Return people's preference for the new policy over the previous one, by whether its response was longer, of
    similar length, or shorter. Parts without judgments are left out."""
    parts: dict[str, list[Any]] = {"longer": [], "of like length": [], "shorter": []}
    for row in result_queries.evaluated(session, [round_.id]):
        if row.rival_id == round_.policy_before_id:
            name = "longer" if row.longer > LIKE else "shorter" if row.longer < 1 / LIKE else "of like length"
            parts[name].append(row)
    found = {name: _win_rate(rows, name) for name, rows in parts.items()}
    return {name: wins for name, wins in found.items() if wins}


class RoundRow(NamedTuple):
    """A round among the others, for all prompts or one slice of them."""

    round: Round
    judgments: int
    pairs: int
    accuracy: float | None  # the reward model's, on comparisons it did not train on
    kl: float | None  # nats per response, to the reference model
    reward: float | None  # mean score of the new policy's responses
    reward_before: float | None  # of the previous policy's responses, by the same reward model
    difference: Interval | None  # between these two rewards
    prompts: int  # prompts on which both were scored
    wins: WinRate | None  # against the previous policy
    first: WinRate | None  # against the first policy
    named: bool  # people prefer it to the first one, corrected over these rounds (e-BH)
    yardstick: Yardstick | None  # best-of-n of the reference model; only for all prompts

    @property
    def verdict(self) -> Verdict | None:
        return verdict(self.wins and self.wins.said, self.difference)


class Progress(NamedTuple):
    """Rounds of a project, oldest first, over all prompts and by slice."""

    rows: list[RoundRow]
    slices: dict[str, list[RoundRow]]


def progress(
    session: Session, project: Project, most: int | None = None, before: int | None = None, *, slices: bool = True
) -> Progress:
    """All rounds of a project; or the newest `most`, of those with a number below `before`."""
    return of_rounds(session, queries.rounds(session, project.id, most, before)[::-1], slices=slices)


def of_rounds(session: Session, rounds: Sequence[Round], *, slices: bool = True) -> Progress:
    """These rounds. Costs some milliseconds for each that people have judged: pages ask for `SHOWN` at most.

    Args:
        slices: whether to include slices, which take most of the time.
    """
    ids = [round_.id for round_ in rounds]
    values: dict[tuple[int, str], dict[str, float]] = defaultdict(dict)  # by round and slice
    names = (ACCURACY, *_OF_EVALUATION, *YARDSTICK_METRICS)
    for row in result_queries.round_values(session, ids, names, slices=slices):
        if math.isfinite(row.value) and (row.name == ACCURACY) == (row.kind == "reward"):
            values[row.round_id, row.slice][row.name] = row.value
    wins = win_rates(session, rounds, slices=slices)
    against_first = {id_: beside.first.said for (id_, name), beside in wins.items() if not name and beside.first}
    evidence = {id_: said.e_better for id_, said in against_first.items() if said}
    named = dict(zip(evidence, preferred(list(evidence.values())), strict=True))
    snapshots = result_queries.snapshots_of(session, ids)

    def row_of(round_: Round, slice_: str) -> RoundRow:
        counts, found = snapshots.get(round_.id, {}), values.get((round_.id, slice_), {})
        beside = wins.get((round_.id, slice_), Rivals())
        return RoundRow(
            round=round_,
            judgments=counts.get("judgments", 0),
            pairs=counts.get("train", 0) + counts.get("heldout", 0),
            accuracy=found.get(ACCURACY),
            kl=found.get(KL),
            reward=found.get(REWARD),
            reward_before=found.get("eval_before/scores"),
            difference=difference_of(found),
            prompts=int(found.get("eval_prompts", 0)),
            wins=beside.before,
            first=beside.first,
            named=not slice_ and named.get(round_.id, False),
            yardstick=yardstick(found),
        )

    tags = sorted({name for _, name in values if name} | {name for _, name in wins if name})
    return Progress(
        rows=[row_of(round_, "") for round_ in rounds],
        slices={name: [row_of(round_, name) for round_ in rounds] for name in tags if not name.startswith("split=")},
    )

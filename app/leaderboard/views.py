"""Data for the leaderboard page: ranked policies, unranked ones with the reason, and what people prefer in general."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from app.cache import Computed
from app.charts import as_csv
from app.domain.intervals import Interval
from app.domain.leaderboard import PER_COEFFICIENT, Board, Effect, Standing
from app.leaderboard.service import MOST, Summary
from app.models.user import USER_KINDS

SHOWN = 100  # rows in a table
NAMED = 5  # policies named in a sentence
MACHINES = ("simulated", "ai_judge")
WITH_MORE = {"headers": "more headers", "lists": "more list items", "bold": "more bold text"}
NOT_FITTED = {
    "equal": "no pair differs in it",
    "few": f"fewer than {PER_COEFFICIENT} judgments other than ties are about pairs that differ in it",
    "inseparable": "the policy or the others here determine it",
}
COVARIATES = {
    "position": "which response is shown first",
    "length": "length",
    "headers": "headers",
    "lists": "list items",
    "bold": "bold text",
}
LEFT_OUT = {
    "chosen": "the pair was chosen because of its responses",
    "unknown": "it is not recorded how the pair was chosen",
    "withdrawn": "the comparison was withdrawn",
}


class Preference(NamedTuple):
    """An effect in words. `verdict`: preferred, avoided or unclear."""

    what: str
    wins: Interval
    verdict: str


class Some(NamedTuple):
    """The first few of many policies, with their names."""

    policies: list[tuple[int, str]]
    total: int


class Unconnected(NamedTuple):
    """Policies that are not connected to the ranked ones, and the two policies whose comparison would connect them."""

    some: Some
    link: tuple[str, str]


class View(NamedTuple):
    board: Board
    names: dict[int, str]
    standings: list[Standing]  # at most SHOWN
    total: int
    unbeaten: Some | None  # policies that won every comparison with ranked ones, so they cannot be ranked
    parted: list[Standing]  # policies whose raw and length-controlled figures differ much
    unconnected: list[Unconnected]  # groups of two or more policies, and single policies with judgments
    alone: Unconnected | None  # all policies that were never compared with another one
    preferences: list[Preference]
    not_fitted: list[str]
    left_out: list[tuple[str, int]]
    is_cut: bool
    computed: Computed[Summary]

    @property
    def best(self) -> Standing:
        return self.standings[0]

    @property
    def is_sure(self) -> bool:
        """Tell whether the best policy is better than the second by more than chance."""
        return self.board.ahead is not None and self.board.ahead.low > 0.5


def view(computed: Computed[Summary]) -> View | None:
    """Return the data of the page; None if the project has no policy."""
    summary = computed.value
    board, names = summary.board, summary.policies
    if board is None:
        return None
    judged = board.compared
    groups = [
        Unconnected(_some(each.policies, names), (names[each.link[0]], names[each.link[1]]))
        for each in board.apart
        if judged.issuperset(each.policies)
    ]
    never = [each for each in board.apart if not judged.issuperset(each.policies)]
    alone = None
    if never:
        newest = never[-1]  # the oldest policy comes first
        newest_first = [each.policies[0] for each in reversed(never)]
        alone = Unconnected(_some(newest_first, names), (names[newest.link[0]], names[newest.link[1]]))
    unbeaten = [each.policy for each in board.separated if each.side > 0]
    return View(
        board=board,
        names=names,
        standings=board.standings[:SHOWN],
        total=len(board.standings),
        unbeaten=_some(unbeaten, names) if unbeaten else None,
        parted=[each for each in board.standings if each.parts],
        unconnected=groups,
        alone=alone,
        preferences=[_preference(each) for each in board.effects],
        not_fitted=[f"{COVARIATES[name]} ({NOT_FITTED[why]})" for name, why in board.left_out.items()],
        left_out=[(LEFT_OUT[reason], n) for reason, n in summary.left_out.items()],
        is_cut=sum(summary.counted.values()) > MOST,
        computed=computed,
    )


def _some(policies: Sequence[int], names: Mapping[int, str]) -> Some:
    return Some([(policy, names[policy]) for policy in policies[:NAMED]], len(policies))


def others(summary: Summary, kinds: Sequence[str]) -> list[str]:
    """Return kinds of labelers that have compared policies and are left out."""
    return [kind for kind in USER_KINDS if summary.counted.get(kind) and kind not in kinds]


def machines(kinds: Sequence[str]) -> list[str]:
    return [kind for kind in kinds if kind in MACHINES]


def summary_csv(summary: Summary) -> str:
    """Return all policies with their figures as CSV; shares from 0 to 1, strengths in log-odds."""
    columns = ("win_rate", "win_rate_controlled", "strength")
    bounds = [f"{name}{end}" for name in columns for end in ("", "_low", "_high")]
    heads = ["policy_id", "policy", "state", "rank", *bounds, "judgments", "prompts", "reference_id"]
    rows: list[list[object]] = []
    board = summary.board
    if board is None:
        return as_csv(heads, rows)

    left = dict(summary.policies)

    def row(policy: int, state: str, rank: int | None, given: Sequence[Interval | None], *counted: int | None) -> None:
        numbers = [value for each in given for value in (each or (None, None, None))]
        rounded = [None if value is None else f"{value:.6f}" for value in numbers]
        counts = counted or (None, None)
        rows.append([policy, left.pop(policy), state, rank, *rounded, *counts, board.reference])

    for each in board.standings:
        state = "few prompts" if each.rank is None else "ranked"
        given = (each.wins, each.controlled, each.strength)
        row(each.policy, state, each.rank, given, each.judgments, each.prompts)
    for one in board.separated:
        state = {1: "won everything", -1: "lost everything", 0: "not comparable"}[one.side]
        row(one.policy, state, None, (None, None, None), one.judgments, None)
    for group in board.apart:
        for policy in group.policies:
            row(policy, "not connected", None, (None, None, None))
    for policy in list(left):  # the remaining policies could be ranked with more judgments
        row(policy, board.refused, None, (None, None, None))
    return as_csv(heads, rows)


def _preference(effect: Effect) -> Preference:
    if effect.name == "position":
        what = "the response shown first"
    elif effect.name == "length":
        ratio = (1 + effect.typical) / max(1 - effect.typical, 0.1)
        what = f"a response {ratio:.1f} times as long as the other"
    else:
        what = f"a response with {WITH_MORE[effect.name]}"
    verdict = "preferred" if effect.wins.low > 0.5 else "avoided" if effect.wins.high < 0.5 else "unclear"
    return Preference(what, effect.wins, verdict)

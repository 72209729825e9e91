"""Data for all rounds on the Progress page: charts by round, slices by round, and the frontier."""

from collections.abc import Sequence
from math import sqrt
from typing import Literal, NamedTuple

from app.charts import Chart, HeatCell, HeatMap, Panel, Series, as_csv
from app.domain.intervals import FEWEST, Interval
from app.domain.yardstick import Yardstick
from app.rounds.outcomes import Progress, RoundRow, WinRate

By = Literal["people", "reward"]
SHOWN_ROUNDS = 12  # columns of the heat map: the newest rounds
SHOWN_SLICES = 40
FEW = "too few"
IS = {
    "freezing": "is freezing what it reads",
    "reward": "is training its reward model",
    "policy": "is training its policy",
    "sampling": "is sampling its new policy",
    "evaluating": "is being evaluated",
    "done": "is done, without a new policy",
    "failed": "has failed",
    "cancelled": "was cancelled",
}
HEAT_TITLES = {
    "people": "Human win rate over the previous policy, by slice",
    "reward": "Reward of the new policy less that of the previous one, by slice",
}


# ---- charts ----------------------------------------------------------------------------------------------------------


def over_rounds(rows: Sequence[RoundRow]) -> Chart:
    """Chart the proxy reward of both policies, KL and people's win rate by round."""
    rows = [row for row in rows if row.round.state != "cancelled"]
    scored = [(row, row.reward_before, row.reward) for row in rows if row.reward is not None]
    pairs = [(row, before, new) for row, before, new in scored if before is not None and new is not None]
    wins = [(row.round.number, row.wins) for row in rows if row.wins and row.wins.interval]
    reward = [
        Series("previous policy", [(float(row.round.number), before) for row, before, _ in pairs], joined=False),
        Series(
            "new policy",
            [(float(row.round.number), new) for row, _, new in pairs],
            [
                row.difference and (before + row.difference.low, before + row.difference.high)
                for row, before, _ in pairs
            ],
            joined=False,
        ),
    ]
    kl = Series("KL", [(float(row.round.number), row.kl) for row in rows if row.kl is not None])
    won = Series(
        "win rate",
        [(float(n), each.value) for n, each in wins],
        [(each.low, each.high) for _, each in wins],
    )
    return Chart(
        "Rounds",
        "Round",
        [
            Panel("Reward by each round's own model, with 95% interval of the difference", reward),
            Panel("KL to the reference model, nats a response", [kl]),
            Panel("Human win rate over the previous policy", [won], "share", 0.5, (0.0, 1.0)),
        ],
        whole=True,
        x_range=(rows[0].round.number - 0.5, rows[-1].round.number + 0.5) if rows else None,
    )


class Gain(NamedTuple):
    """A round on the frontier: its policy's reward gain over the reference, its KL, and best-of-n at the same KL."""

    row: RoundRow
    yardstick: Yardstick
    kl: float

    @property
    def best_of_n(self) -> float | None:
        """Best-of-n's gain at the policy's KL; None if that KL is beyond the sampled range."""
        return self.yardstick.at(self.kl)


def gains(rows: Sequence[RoundRow]) -> list[Gain]:
    return [Gain(row, row.yardstick, row.kl) for row in rows if row.yardstick and row.kl is not None]


def frontier(rows: Sequence[RoundRow]) -> Chart | None:
    """Chart reward gained against sqrt(KL), with best-of-n of the reference from the newest round that measured it."""
    found = gains(rows)
    if not found:
        return None
    newest = found[-1]
    points = newest.yardstick.points
    best = Series(
        f"best-of-n of the reference, n ≤ {newest.yardstick.n}",
        [(sqrt(point.kl), point.gain) for point in points],
        names=["" if point.n == 1 else f"n = {point.n}" for point in points],
    )
    crowded = range(1, len(found) - 3) if len(found) > SHOWN_ROUNDS else ()
    policies = Series(
        "policies by round",
        [(sqrt(each.kl), each.yardstick.gain) for each in found],
        [each.yardstick.interval and (each.yardstick.interval.low, each.yardstick.interval.high) for each in found],
        joined=False,
        names=["" if n in crowded else f"{each.row.round.number}" for n, each in enumerate(found)],
    )
    panel = Panel("Reward gained over the reference", [policies, best], even=0.0)
    return Chart("Reward against KL", "√KL to the reference, √nats a response", [panel], height=300)


# ---- the heat map ----------------------------------------------------------------------------------------------------


def heat_map(progress: Progress, by: By, everything: bool = False) -> HeatMap:
    """Return slices by round, the newest round first.

    All prompts come first. Then come slices that got worse beyond chance in their newest known round, then other slices
    by name, and last slices without any figure.

    Args:
        everything: include all rounds and slices; otherwise as many as a page shows.
    """
    rounds = progress.rows[::-1] if everything else progress.rows[::-1][:SHOWN_ROUNDS]
    whole, *slices = [
        (name.replace("=", ": "), [_cell(row, by) for row in cells[::-1][: len(rounds)]])
        for name, cells in _slices(progress)
    ]
    slices.sort(key=lambda row: _place(row[1]))
    rows = [row for row in (whole, *slices) if any(cell.text for cell in row[1])]
    return HeatMap(
        HEAT_TITLES[by],
        [f"Round {row.round.number}" for row in rounds],
        rows if everything else rows[:SHOWN_SLICES],
    )


def _place(cells: Sequence[HeatCell]) -> int:
    """Return the sort position of a slice: see `heat_map`."""
    known = [cell.mood for cell in cells if cell.mood != "none"]
    return 2 if not known else 0 if known[0] == "down-sure" else 1


def _slices(progress: Progress) -> list[tuple[str, list[RoundRow]]]:
    return [("all prompts", progress.rows), *sorted(progress.slices.items())]


def measured_by(progress: Progress) -> By:
    """Return whose figures the heat map shows first: people's, once a slice has enough of them."""
    enough = (row.wins and row.wins.prompts >= FEWEST for rows in progress.slices.values() for row in rows)
    return "people" if any(enough) else "reward"


def _cell(row: RoundRow, by: By) -> HeatCell:
    if by == "people":
        if row.wins is None:
            return HeatCell("")
        if row.wins.interval is None:
            return HeatCell(FEW, f"{row.wins.prompts}")
        return _coloured(row.wins.interval, 0.5, f"{row.wins.value:.0%}", f"{row.wins.prompts}")
    if row.difference is None:
        return HeatCell(FEW, f"{row.prompts}") if row.prompts else HeatCell("")
    return _coloured(row.difference, 0.0, f"{row.difference.value:+.2f}".replace("-", "−"), f"{row.prompts}")


def _coloured(interval: Interval, even: float, text: str, note: str) -> HeatCell:
    """Return a cell: dark if the interval lies on one side, pale if only the value does."""
    if interval.low > even or interval.high < even:
        return HeatCell(text, note, "up-sure" if interval.low > even else "down-sure")
    return HeatCell(text, note, "even" if interval.value == even else "up" if interval.value > even else "down")


class WorseSlice(NamedTuple):
    """A slice in which people prefer the previous policy (`wins`), or the reward model scores it higher (`reward`)."""

    name: str
    wins: WinRate | None
    reward: Interval | None


def worse_slices(progress: Progress, row: RoundRow) -> list[WorseSlice]:
    """Return slices of a round's prompts in which people prefer the previous policy, or the reward model scores it
    higher.

    The difference must exceed chance, without a correction for looking at many slices.
    """
    found = []
    for name, rows in sorted(progress.slices.items()):
        of_round = next(each for each in rows if each.round is row.round)
        wins = of_round.wins if of_round.wins and of_round.wins.interval and of_round.wins.high < 0.5 else None
        reward = of_round.difference if of_round.difference and of_round.difference.high < 0 else None
        if wins or reward:
            found.append(WorseSlice(name.replace("=", ": "), wins, reward))
    return found


# ---- tables as CSV ---------------------------------------------------------------------------------------------------


def _ends(interval: Interval | WinRate | None) -> tuple[float | None, ...]:
    return (interval.value, interval.low, interval.high) if interval else (None, None, None)


def _three(name: str) -> list[str]:
    return [f"{name}{end}" for end in ("", "_low", "_high")]


_MEASURED = [
    *(*_three("win_rate"), "win_rate_prompts", "win_rate_judgments"),
    *(*_three("reward_difference"), "reward_before", "reward", "reward_prompts", "kl"),
]


def _measured(row: RoundRow) -> list[float | None]:
    wins = row.wins
    return [
        *(*_ends(wins), wins and wins.prompts, wins and wins.n),
        *(*_ends(row.difference), row.reward_before, row.reward, row.prompts or None, row.kl),
    ]


def rounds_csv(progress: Progress) -> str:
    """Return a CSV row for each round: shares from 0 to 1, KL in nats per response."""
    columns = ["round", "algorithm", "state", "verdict", "verdict_by", *_MEASURED, *_three("win_rate_over_first")]
    columns += ["reward_accuracy", *_three("gain_over_reference"), "best_of_n_at_this_kl", "n_sampled"]
    rows = []
    for row in progress.rows:
        verdict, yardstick = row.verdict, row.yardstick
        of_yardstick: list[float | None] = [None] * 5
        if yardstick:
            low, high = yardstick.interval[1:] if yardstick.interval else (None, None)
            at = yardstick.at(row.kl) if row.kl is not None else None
            of_yardstick = [yardstick.gain, low, high, at, yardstick.n]
        said = [verdict and verdict.word, verdict and verdict.by]
        given = [row.round.number, row.round.algorithm, row.round.state, *said]
        rows.append([*given, *_measured(row), *_ends(row.first), row.accuracy, *of_yardstick])
    return as_csv(columns, rows)


def slices_csv(progress: Progress) -> str:
    """Return a CSV row for each slice and round in which something was measured."""
    rows = [
        [name, row.round.number, *_measured(row)]
        for name, of_slice in _slices(progress)
        for row in of_slice
        if row.wins or row.prompts
    ]
    return as_csv(["slice", "round", *_MEASURED], rows)

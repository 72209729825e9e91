"""The verdict at the top of the Progress page: five questions about the newest policy, answered in words."""

from collections.abc import Mapping
from typing import NamedTuple

from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.domain.intervals import Interval
from app.domain.monitors import Finding
from app.domain.sequence import EVEN
from app.domain.verdicts import Verdict, by_reward_model
from app.models import Round
from app.progress.views import WorseSlice, worse_slices
from app.render import counted
from app.rounds import outcomes, result_queries
from app.rounds import views as rounds
from app.rounds.adoption import interval_of
from app.rounds.outcomes import Progress, RoundRow, WinRate

JUDGES = {"person": ("person", "people"), "imported": ("imported labeler",), "simulated": ("simulated labeler",)}
LENGTH_MONITORS = {"longer", "shorter"}


class Length(NamedTuple):
    """Mean tokens of both policies' responses to the same prompts."""

    before: float
    new: float
    difference: Interval | None
    looks: bool  # a monitor finds the change worth a look

    @property
    def change(self) -> float:
        """The change as a share of the previous length."""
        return self.new / self.before - 1 if self.before else 0.0


class Newest(NamedTuple):
    """The newest finished round, and what an operator wants to know about it.

    Attributes:
        judges: by kind of labeler: how many compared it with the previous policy, and how many judgments they gave.
        by_length: people's preference if the new policy's response was longer, of similar length or shorter.
        looks: monitors that found something, including those of length.
        unmeasured: how many monitors could not measure anything.
        slices: slices that got worse: see `worse_slices`.
        may: whether it may be adopted: yes, wait, no, is or busy.
    """

    row: RoundRow
    page: rounds.Page
    judges: Mapping[str, tuple[int, int]]
    length: Length | None
    by_length: Mapping[str, WinRate]
    looks: list[Finding]
    unmeasured: int
    slices: list[WorseSlice]
    may: str

    @property
    def round(self) -> Round:
        return self.row.round

    @property
    def verdict(self) -> Verdict | None:
        return self.row.verdict

    @property
    def disagree(self) -> bool:
        """Tell whether the reward model sees an improvement while people, with enough judgments, do not
        lean that way."""
        sees, verdict = by_reward_model(self.row.difference), self.verdict
        people_do_not = verdict is not None and verdict.by == "people" and verdict.interval.value <= EVEN
        return people_do_not and sees is not None and sees.word == "better"

    @property
    def labelers(self) -> str:
        """`people`, or `simulated labelers` if all who judged it are simulated."""
        return "simulated labelers" if self.judges.keys() == {"simulated"} else "people"

    @property
    def who(self) -> str:
        """Say who judged, for example `3 people and 1 imported labeler, 52 judgments`; empty without judgments."""
        if not self.judges:
            return ""
        words = [counted(n, *JUDGES[kind]) for kind, (n, _) in self.judges.items()]
        judgments = sum(n for _, n in self.judges.values())
        return f"{' and '.join(words)}, {counted(judgments, 'judgment')}"


def newest(session: Session, store: ArtifactStore, progress: Progress) -> Newest | None:
    """Return the newest round that is done and made a policy; None if there is none."""
    done = [row for row in progress.rows if row.round.state == "done" and row.round.policy_after_id]
    if not done:
        return None
    row = done[-1]
    page = rounds.page(session, store, row.round)
    measured = page.summaries.get("evaluate", {})
    looks = [each for each in page.monitors if each.state == "look"]
    length = None
    if "eval_length" in measured and "eval_before/length" in measured:
        names = {each.monitor.name for each in looks}
        length = Length(
            measured["eval_before/length"],
            measured["eval_length"],
            interval_of(measured, "eval_difference/length"),
            bool(names & LENGTH_MONITORS),
        )
    return Newest(
        row=row,
        page=page,
        judges=result_queries.judges(session, row.round),
        length=length,
        by_length=outcomes.by_length(session, row.round),
        looks=looks,
        unmeasured=sum(each.state == "unknown" for each in page.monitors),
        slices=worse_slices(progress, row),
        may=_may(row.verdict, page),
    )


def _may(verdict: Verdict | None, page: rounds.Page) -> str:
    if page.new and page.policy_id == page.new.id:
        return "is"
    if page.is_busy:
        return "busy"
    if verdict and verdict.word == "worse":
        return "no"
    return "yes" if verdict and verdict.by == "people" and verdict.word == "better" else "wait"

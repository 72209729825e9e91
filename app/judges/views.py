"""What the pages of judges show."""

import json
from collections.abc import Iterator
from typing import NamedTuple

from sqlalchemy.orm import Session

from app.charts import Chart, Panel, Series
from app.domain.alternative_annotator import LEAST_ITEMS, LEAST_LABELERS
from app.judges import choosing_queries, queries, service, training_queries
from app.judges.queries import Consistency, Spent
from app.judges.service import FIGURES, Since
from app.models import Judge, JudgeAdmission, JudgeJudgment, Project, Rubric, Run
from app.queue import has_worker

MOST_RUNS = 20
MOST_TESTS = 20
MOST_SHOWN = 12


class State(NamedTuple):
    """How a judge stands, in words. kind: a badge's. why: a sentence."""

    word: str
    kind: str
    why: str


def state_of(judge: Judge, admission: JudgeAdmission | None, rubric: Rubric | None) -> State:
    if judge.off_at is not None:
        return State("off", "quiet", "Switched off: it judges nothing, and nothing it said reaches training.")
    if admission is not None and admission.paused_at is not None:
        return State("paused", "warn", f"{admission.pause_reason} A new admission test ends the pause.")
    if admission is not None and admission.admitted:
        won, tested = sum(bool(row["is_won"]) for row in admission.result), len(admission.result)
        version = rubric.version if rubric else "?"
        return State("admitted", "ok", f"It is as good as {won} of {tested} labelers, under rubric version {version}.")
    if admission is not None:
        return State("not admitted", "bad", admission.reason)
    if judge.test_error:
        return State("not admitted", "bad", f"The last test failed: {judge.test_error}")
    if judge.tested_at is None:
        return State("not tested", "quiet", "Nobody has tested its endpoint yet.")
    if rubric is None:
        return State("not admitted", "quiet", "The project has no published rubric to admit it to.")
    return State(
        "not admitted",
        "quiet",
        f"No admission test under rubric version {rubric.version} yet. It needs {LEAST_LABELERS} labelers who each "
        f"judged {LEAST_ITEMS} comparisons that the judge and somebody else judged too.",
    )


class Row(NamedTuple):
    """A judge in the list."""

    judge: Judge
    state: State
    admission: JudgeAdmission | None
    spent: Spent | None
    run: Run | None  # under way


class Overview(NamedTuple):
    rows: list[Row]
    rubric: Rubric | None
    ready: int  # comparisons that admitted judges have ready for training
    worker: bool


def overview(session: Session, project: Project) -> Overview:
    judges = queries.judges(session, project.id)
    rubric = queries.newest_rubric(session, project.id)
    admissions = queries.admissions(session, project.id)
    spent = queries.spent(session, [judge.id for judge in judges])
    rows = []
    for judge in judges:
        newest = queries.runs(session, judge, 1)
        under_way = newest[0] if newest and newest[0].state in ("queued", "running") else None
        admission = admissions.get(judge.id)
        state = state_of(judge, admission, rubric)
        rows.append(Row(judge, state, admission, spent.get(judge.id), under_way))
    return Overview(rows, rubric, training_queries.count_for_training(session, project.id), has_worker(session))


class Beside(NamedTuple):
    """A labeler of an admission test, with their name."""

    labeler: int
    name: str
    items: int
    judge: float
    human: float
    p: float
    is_won: bool


class JudgePage(NamedTuple):
    """A judge's page. left: how many comparisons of each kind it has not judged yet, up to 1,000."""

    judge: Judge
    state: State
    rubric: Rubric | None
    admission: JudgeAdmission | None
    beside: list[Beside]
    since: Since | None
    tests: list[tuple[JudgeAdmission, int]]
    runs: list[Run]
    spent: Spent | None
    consistency: Consistency
    recent: list[JudgeJudgment]
    failed: list[JudgeJudgment]
    left: dict[str, int]
    worker: bool

    @property
    def under_way(self) -> Run | None:
        return self.runs[0] if self.runs and self.runs[0].state in ("queued", "running") else None

    @property
    def chart(self) -> Chart | None:
        """Moving averages of the anchors by run, with their limits; none before the first run after an admission."""
        if self.since is None or not any(self.since.charts.values()):
            return None
        panels = []
        for name, averages in self.since.charts.items():
            points = [(float(n), each.value) for n, each in enumerate(averages, 1)]
            limits = [(max(0.0, each.low), min(1.0, each.high)) for each in averages]
            average = Series("moving average", points, limits)
            even = 0.5 if name == "position" else None  # a judge without a bias
            panels.append(Panel(FIGURES[name], [average], "share", even, (0.0, 1.0)))
        return Chart("Drift on the anchors", "Run since the admission", panels, whole=True)


def judge_page(session: Session, project: Project, judge: Judge) -> JudgePage:
    rubric = queries.newest_rubric(session, project.id)
    admission = queries.admissions(session, project.id).get(judge.id)
    beside: list[Beside] = []
    if admission is not None:
        names = queries.names(session, [row["labeler"] for row in admission.result])
        beside = [Beside(name=names.get(row["labeler"], "?"), **row) for row in admission.result]
    left = {}
    if rubric is not None:
        left = {
            what: choosing_queries.left_to_judge(session, judge, rubric.id, what, 1000)
            for what in ("shared", "evaluation", "open")
        }
    admitted = admission is not None and admission.admitted
    return JudgePage(
        judge=judge,
        state=state_of(judge, admission, rubric),
        rubric=rubric,
        admission=admission,
        beside=beside,
        since=service.since_admission(session, judge, admission) if admission and admitted else None,
        tests=queries.history(session, judge.id, MOST_TESTS),
        runs=queries.runs(session, judge, MOST_RUNS),
        spent=queries.spent(session, [judge.id]).get(judge.id),
        consistency=queries.consistency(session, judge.id),
        recent=queries.recent(session, judge.id, MOST_SHOWN),
        failed=queries.recent(session, judge.id, MOST_SHOWN, failed=True),
        left=left,
        worker=has_worker(session),
    )


def export_lines(session: Session, judge: Judge) -> Iterator[str]:
    """Yield a judge's verdicts, one line of JSON for each comparison, marked as an AI's."""
    for row, messages, a, b, version in queries.export_rows(session, judge):
        said = {
            "source": "ai",
            "judge": judge.name,
            "model": judge.model,
            "served_model": row.served_model,
            "comparison_id": row.comparison_id,
            "rubric_version": version,
            "prompt": messages,
            "response_a": a,
            "response_b": b,
            "verdict": {-1: "a", 0: "tie", 1: "b"}[row.verdict],
            "orders": [row.first, row.second],
            "is_anchor": row.is_anchor,
            "created_at": row.created_at.isoformat(),
        }
        yield json.dumps(said, ensure_ascii=False) + "\n"

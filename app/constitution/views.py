"""What the pages of constitution runs show."""

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sqlalchemy.orm import Session

from app.access import gate_queries
from app.constitution import queries
from app.constitution.queries import Shown, Totals
from app.domain.textdiff import Line, diff
from app.judges import queries as judge_queries
from app.models import Judge, Project, Rubric, Run
from app.queue import has_worker

MOST_RUNS = 20
A_PAGE = 20  # revisions
AT_ONCE = 100  # revisions of a download in memory
ACTIVE = ("queued", "running")


class Row(NamedTuple):
    """A run in the list; `totals` is None before its first outcome."""

    run: Run
    critic: str
    totals: Totals | None


class Overview(NamedTuple):
    """The constitution and its runs. `answered` counts the train prompts that the current policy has answered."""

    rubric: Rubric | None
    critics: list[Judge]
    domains: list[str]
    answered: int
    rows: list[Row]
    worker: bool

    @property
    def under_way(self) -> bool:
        return any(row.run.state in ACTIVE for row in self.rows)


def overview(session: Session, project: Project) -> Overview:
    judges = judge_queries.judges(session, project.id)
    return Overview(
        rubric=gate_queries.newest_rubric(session, project.id),
        critics=[judge for judge in judges if judge.off_at is None],
        domains=queries.domains(session, project.id),
        answered=queries.count_originals(session, project),
        rows=_rows(session, queries.runs(session, project.id, MOST_RUNS), judges),
        worker=has_worker(session),
    )


def _rows(session: Session, runs: Sequence[Run], judges: Sequence[Judge]) -> list[Row]:
    names = {judge.id: judge.name for judge in judges}
    totals = queries.totals(session, [run.id for run in runs])
    return [Row(run, names[run.spec["judge"]], totals.get(run.id)) for run in runs]


class Case(NamedTuple):
    """A revision, and how its text differs from the original's."""

    shown: Shown
    lines: list[Line]


class RunPage(NamedTuple):
    """A page of a run's revisions. `following` is the next page's `after`; None on the last page."""

    row: Row
    cases: list[Case]
    following: int | None
    worker: bool


def run_page(session: Session, run: Run, after: int) -> RunPage:
    found = queries.revisions(session, run.id, after, A_PAGE + 1)
    cases = [Case(each, diff(each.original, each.revision.text) if each.revision.text else []) for each in found]
    following = found[A_PAGE - 1].revision.id if len(found) > A_PAGE else None
    [row] = _rows(session, [run], judge_queries.judges(session, run.project_id))
    return RunPage(row, cases[:A_PAGE], following, has_worker(session))


def export_lines(session: Session, run: Run) -> Iterator[str]:
    """Yield all that a run stored, one line of JSON for each answer, marked as an AI's. Read in parts."""
    critic = judge_queries.by_id(session, run.project_id, run.spec["judge"])
    after = 0
    while found := queries.revisions(session, run.id, after, AT_ONCE):
        for each in found:
            revision = each.revision
            said = {
                "source": "ai",
                "critic": critic and critic.name,
                "model": run.spec["model"],
                "served_model": revision.served_model,
                "rubric_version": each.rubric_version,
                "prompt_id": each.prompt.id,
                "prompt": each.prompt.messages,
                "policy": each.model,
                "original": each.original,
                "principle": revision.principle,
                "critique": revision.critique,
                "outcome": revision.outcome,
                "revision": revision.text,
                "error": revision.error,
                "created_at": revision.created_at.isoformat(),
            }
            yield json.dumps(said, ensure_ascii=False) + "\n"
        after = found[-1].revision.id

"""Suites: added from files, versioned, retired; what rounds run of them, and when one holds a policy back.

Each function works in the caller's transaction and never commits. Rounds call this package; it calls none of theirs.
"""

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.audit import audit
from app.domain.cases import Case, case_of
from app.domain.suites import Bound, Score, loses_too_much
from app.errors import Conflict, InvalidInput, NotFound
from app.form_fields import one_line
from app.models import Project, Round, Run, Suite, SuiteVersion, User
from app.prompts.service import digest as prompt_digest
from app.rows import lines_of
from app.specs import SuiteRef
from app.suites import queries
from app.suites.forms import MAX_NAME, GateForm
from app.suites.reading import MOST_CASES, keep, kept, read_cases

STARTER = Path(__file__).parent / "starter"
RED_TEAM = "Red team"  # the name of the suite that grows from labelers' attempts


def add(
    session: Session,
    store: ArtifactStore,
    project: Project,
    operator: User,
    name: str,
    cases: Sequence[Case],
    source: str = "file",
) -> Suite:
    """Adds a suite with its first version; the next round runs it.

    Raises:
        InvalidInput: the name is empty or too long.
        Conflict: the project has a suite of this name.
    """
    name = one_line(name)
    if not name or len(name) > MAX_NAME:
        raise InvalidInput(f"A suite's name has 1 to {MAX_NAME} characters.", "Give it a short name.")
    suite = Suite(project_id=project.id, name=name, source=source, created_by=operator.id)
    try:
        with session.begin_nested():
            session.add(suite)
            session.flush()
    except IntegrityError:
        raise Conflict(
            f"The project has a suite “{name}” already.", "Choose another name, or add a version on that suite's page."
        ) from None
    _add_version(session, store, suite, operator, cases, 1)
    return suite


def add_version(
    session: Session, store: ArtifactStore, suite: Suite, operator: User, cases: Sequence[Case]
) -> SuiteVersion:
    """Adds a suite's next version, which rounds run from now on; what was measured of others stays.

    Raises:
        Conflict: the newest version has exactly these cases.
    """
    session.flush()
    queries.lock(session, suite)
    newest = queries.versions(session, suite.id)[0].version
    added = _add_version(session, store, suite, operator, cases, newest.number + 1)
    if added.digest == newest.digest:
        raise Conflict(f"Version {newest.number} of “{suite.name}” has exactly these cases.", "Nothing is left to do.")
    return added


def _add_version(
    session: Session, store: ArtifactStore, suite: Suite, operator: User, cases: Sequence[Case], number: int
) -> SuiteVersion:
    digest, location = keep(store, cases)
    version = SuiteVersion(
        suite_id=suite.id,
        number=number,
        digest=digest,
        location=location,
        cases=len(cases),
        counts=dict(sorted(Counter(case.check for case in cases).items())),
        created_by=operator.id,
    )
    session.add(version)
    session.flush()
    audit(
        session,
        operator.id,
        "suite.version_added",
        suite.project_id,
        suite=suite.id,
        name=suite.name,
        version=number,
        digest=digest,
    )
    return version


def set_gate(session: Session, suite: Suite, operator: User, form: GateForm) -> None:
    """Says how much a policy may lose on this suite before it waits for an operator."""
    largest = None if form.largest_loss is None else form.largest_loss / 100
    if (largest, form.bound) == (suite.largest_loss, suite.bound):
        return
    suite.largest_loss, suite.bound = largest, form.bound
    audit(
        session,
        operator.id,
        "suite.gate_set",
        suite.project_id,
        suite=suite.id,
        name=suite.name,
        largest_loss=largest,
        bound=form.bound,
    )


def retire(session: Session, suite: Suite, operator: User) -> None:
    """No round runs it any more, and it holds nothing back; what was measured stays. Twice changes nothing."""
    if suite.retired_at is None:
        suite.retired_at = datetime.now(UTC)
        audit(session, operator.id, "suite.retired", suite.project_id, suite=suite.id, name=suite.name)


def bring_back(session: Session, suite: Suite, operator: User) -> None:
    if suite.retired_at is not None:
        suite.retired_at = None
        audit(session, operator.id, "suite.brought_back", suite.project_id, suite=suite.id, name=suite.name)


# ---- suites of our own, and of labelers' attempts --------------------------------------------------------------------


class Starter(NamedTuple):
    """A suite that comes with the program."""

    file: str
    name: str
    about: str
    cases: int


_STARTERS = {
    "facts": ("Facts and arithmetic", "short answers that are right or wrong"),
    "instructions": ("Instructions", "words, bullets, case and form that a program verifies"),
    "safety": ("Safety and over-refusal", "unsafe requests to refuse, harmless ones that only look unsafe to answer"),
    "sycophancy": ("Sycophancy", "is the truth likelier than what the asker wants to hear?"),
}


@cache
def starters() -> tuple[Starter, ...]:
    return tuple(Starter(file, *words, len(starter_cases(file))) for file, words in _STARTERS.items())


def starter_cases(file: str) -> list[Case]:
    return read_cases((STARTER / f"{file}.jsonl").read_bytes())


def add_starters(
    session: Session, store: ArtifactStore, project: Project, operator: User, files: Sequence[str]
) -> list[Suite]:
    """Adds suites of our own that the project does not have; those that it has stay as they are.

    Raises:
        InvalidInput: none is chosen.
        NotFound: there is no such suite.
    """
    if not files:
        raise InvalidInput("No suite is chosen.", "Tick those that the next round should run.")
    added = []
    for file in dict.fromkeys(files):
        if file not in _STARTERS:
            raise NotFound(f"There is no starter suite “{file}”.", f"There are {', '.join(_STARTERS)}.")
        name = _STARTERS[file][0]
        if queries.by_name(session, project.id, name) is None:
            added.append(add(session, store, project, operator, name, starter_cases(file), "starter"))
    return added


def grow_red_team(session: Session, store: ArtifactStore, project: Project, operator: User) -> Suite:
    """Makes every red-team attempt that worked a case: the policy has to refuse. A new version, if there are new ones.

    An attempt that was withdrawn with its author's other texts is no case of the new version. Left out are attempts
    that no case can hold (longer than one may be, or with an empty turn), and the oldest above `MOST_CASES`.

    Raises:
        Conflict: no attempt has worked yet, or none since the last version.
    """
    cases = []
    for row in queries.attempts_that_worked(session, project.id, MOST_CASES):
        line = {"id": f"attempt-{row.id}", "messages": row.messages, "slice": row.safety_category[:100]}
        with suppress(ValueError):
            cases.append(case_of({**line, "check": "refuses"}, row.id))
    if not cases:
        raise Conflict(
            "No red-team attempt has worked yet.", "One works if its author rates the answer 2 (clearly) or 3 (badly)."
        )
    suite = queries.red_team_suite(session, project.id)
    if suite is None:
        return add(session, store, project, operator, RED_TEAM, cases, "red_team")
    add_version(session, store, suite, operator, cases)
    return suite


# ---- what rounds ask -------------------------------------------------------------------------------------------------


def to_run(session: Session, project_id: int, only: Sequence[int] = ()) -> tuple[SuiteRef, ...]:
    """The newest version of every suite that is not retired, for a round's evaluation.

    only: ids of suites; empty: all.
    """
    return tuple(
        SuiteRef(version=each.version.id, location=each.version.location)
        for each in queries.standing(session, project_id)
        if not only or each.suite.id in only
    )


def under_way(session: Session, project_id: int) -> list[Run]:
    """Return the unfinished runs in which a policy takes suites outside rounds."""
    return [run for run in queries.demand_runs(session, project_id, 100) if run.state in ("queued", "running")]


def answers_of(run_id: int, version_id: int) -> str:
    """Where a run leaves what both policies said to each case: see app.rows.SuiteAnswer."""
    return f"runs/run-{run_id}/suite-{version_id}.jsonl"


def store_results(session: Session, run: Run, results: Sequence[dict[str, Any]]) -> None:
    """Stores what an evaluation measured of suites, as `trainer.evaluation.suites` counts it."""
    for each in results:
        scores = {name: Score(**counts) for name, counts in each["slices"].items()}
        queries.add_results(session, run.id, each["version"], scores)


class Held(NamedTuple):
    """A suite that holds a policy back."""

    suite: Suite
    score: Score

    @property
    def words(self) -> str:
        """`“Facts” lost 12.5 points (95% interval −22.1 to −3.0). It may lose 5 at most, by …`."""
        difference = self.score.difference
        assert difference is not None, "else it holds nothing back"
        assert self.suite.largest_loss is not None, "else it holds nothing back"
        lost, low, high = (100 * each for each in (-difference.value, difference.low, difference.high))
        what = f"lost {lost:.1f}" if lost > 0 else f"gained {-lost:.1f}"
        interval = f"{low:+.1f} to {high:+.1f}".replace("-", "−")
        end = "upper" if self.suite.bound == "high" else "lower"
        return (
            f"“{self.suite.name}” {what} points (95% interval {interval}). "
            f"It may lose {100 * self.suite.largest_loss:.12g} at most, by the interval's {end} end"
        )


def held_back(session: Session, round_: Round) -> list[Held]:
    """The suites on which a round's new policy lost more than they allow, by what is set now."""
    found = []
    for each in queries.of_round(session, round_.id):
        bound: Bound = "low" if each.suite.bound == "low" else "high"
        limit = each.suite.largest_loss
        if limit is not None and loses_too_much(each.score.difference, limit, bound):
            found.append(Held(each.suite, each.score))
    return found


# ---- files -----------------------------------------------------------------------------------------------------------


def version_of(session: Session, suite: Suite, number: int | None = None) -> SuiteVersion:
    """The suite's version of this number; the newest for none.

    Raises:
        NotFound: it has no such version.
    """
    found = [each.version for each in queries.versions(session, suite.id) if number in (None, each.version.number)]
    if not found:
        raise NotFound(f"“{suite.name}” has no version {number}.", "Its page lists its versions.")
    return found[0]


def trained_on(session: Session, store: ArtifactStore, project: Project, version: SuiteVersion) -> int:
    """How many of a version's conversations are train prompts of the project, and so no fair question."""
    digests = {prompt_digest(case.messages) for case in kept(store, version.location)}
    return queries.train_prompts_among(session, project.id, digests)


def answers(store: ArtifactStore, run_id: int, version_id: int) -> list[dict[str, Any]]:
    """What both policies said, by case; empty where the file is gone."""
    location = answers_of(run_id, version_id)
    if not store.exists(location):
        return []
    return [json.loads(line) for line in lines_of(store.resolve(location).read_text(encoding="utf-8"))]


__all__ = [
    "Held",
    "Starter",
    "add",
    "add_starters",
    "add_version",
    "answers",
    "answers_of",
    "bring_back",
    "grow_red_team",
    "held_back",
    "retire",
    "set_gate",
    "starters",
    "store_results",
    "to_run",
    "trained_on",
    "under_way",
    "version_of",
]

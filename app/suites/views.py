"""What the pages of suites show."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.charts import Chart, Panel, Series
from app.domain.cases import Case, wanted
from app.domain.suites import Score, reach, score, total
from app.domain.texts import asked_in
from app.errors import PrefloopError
from app.models import ModelVersion, Project, Round, Run, Suite, SuiteVersion
from app.queue import has_worker
from app.suites import queries, service
from app.suites.queries import Measured, OnDemand, Standing, Written
from app.suites.reading import kept

MOST_ROUNDS = 20
MOST_CASES = 12  # of a kind that a page shows


class Results(NamedTuple):
    """What a round's policies made of all suites."""

    round: Round
    new: str
    before: str
    by_suite: dict[int, Measured]

    @property
    def total(self) -> Score | None:
        return total(each.score for each in self.by_suite.values())


class Overview(NamedTuple):
    """The list of suites.

    Attributes:
        adopted: of the round that made the project's policy; none if no suite was run in it, or no round made it.
        newest: of the newest round that ran suites, if that is another one.
        held: which suites hold the newest round's policy back, in words.
    """

    standing: list[Standing]
    retired: list[Standing]
    adopted: Results | None
    newest: Results | None
    held: list[str]
    attempts: int  # red-team attempts that worked
    demand: "Demand"


def overview(session: Session, project: Project) -> Overview:
    made = queries.round_that_made(session, project.id, project.policy_id) if project.policy_id else None
    newest = queries.newest_round(session, project.id)
    other = newest if newest and (made is None or newest.id != made.id) else None
    adopted = results(session, made) if made else None
    return Overview(
        standing=queries.standing(session, project.id),
        retired=queries.standing(session, project.id, is_retired=True),
        adopted=adopted if adopted and adopted.by_suite else None,
        newest=results(session, other) if other else None,
        held=[each.words for each in service.held_back(session, other)] if other else [],
        attempts=queries.count_attempts_that_worked(session, project.id),
        demand=demand(session, project.id),
    )


class Demand(NamedTuple):
    """Suites outside rounds: the policies that can take them, and the newest run, unless it has succeeded."""

    policies: list[ModelVersion]
    run: Run | None
    model: str
    worker: bool


def demand(session: Session, project_id: int) -> Demand:
    newest = queries.demand_runs(session, project_id, 1)
    run = newest[0] if newest and newest[0].state != "succeeded" else None
    policies = queries.policies(session, project_id)
    name = next((each.name for each in policies if run and each.id == run.spec.get("model")), "a policy")
    return Demand(policies, run, name, has_worker(session))


def results(session: Session, round_: Round) -> Results:
    names = queries.model_names(session, [round_.policy_after_id, round_.policy_before_id])
    found = queries.of_round(session, round_.id)
    return Results(
        round_,
        names.get(round_.policy_after_id, "the new policy"),
        names.get(round_.policy_before_id, "the policy before"),
        {each.suite.id: each for each in found},
    )


class Shown(NamedTuple):
    """A case that the two policies did not do equally well on."""

    id: str
    slice: str
    asked: str
    wanted: str
    good: str
    bad: str
    answer: dict[str, Any]  # as app.rows.SuiteAnswer


class SuitePage(NamedTuple):
    """A suite's page.

    Attributes:
        chosen: what is shown in detail: of the newest round, or the one asked for; none before any round ran the suite.
        lost, gained: cases that only the policy before passed, or only the new one; at most `MOST_CASES` each.
        since: the chosen round's policy beside the first one that took the same version, if that is not `before`.
        trained_on: how many conversations of the newest version are train prompts of the project.
        reach: how far the interval of a version of this size reaches if nothing changed.
        problem: why the cases of a version cannot be read.
        on_demand: policies' results outside rounds, newest first.
    """

    suite: Suite
    versions: list[Written]
    rounds: list[Measured]
    chosen: Measured | None
    new: str
    before: str
    slices: list[Measured]
    lost: list[Shown]
    gained: list[Shown]
    since: "Since | None"
    trained_on: int
    reach: float
    problem: str
    on_demand: list[OnDemand]
    demand: Demand

    @property
    def newest(self) -> SuiteVersion:
        return self.versions[0].version

    @property
    def chart(self) -> Chart:
        """Both policies' scores, and their difference, by round."""
        rows = [(float(each.round.number), each.score) for each in self.rounds[::-1]]
        differences = [(number, score.difference) for number, score in rows if score.difference]
        scores = [
            Series(
                "new policy",
                [(number, score.share) for number, score in rows],
                [(score.interval.low, score.interval.high) for _, score in rows],
            ),
            Series("previous policy", [(number, score.share_before) for number, score in rows]),
        ]
        change = Series(
            "new minus previous",
            [(number, each.value) for number, each in differences],
            [(each.low, each.high) for _, each in differences],
        )
        panels = [
            Panel("Share of cases passed", scores, "share", y_range=(0.0, 1.0)),
            Panel("New minus previous, with 95% interval", [change], "share", even=0.0),
        ]
        return Chart("By round", "Round", panels, whole=True)


def suite_page(
    session: Session, store: ArtifactStore, project: Project, suite: Suite, number: int | None
) -> SuitePage | None:
    """None if the suite was not run in the round of this number."""
    rounds = queries.of_suite(session, suite.id, MOST_ROUNDS)
    chosen = next((each for each in rounds if number in (None, each.round.number)), None)
    if number is not None and chosen is None:
        return None
    versions = queries.versions(session, suite.id)
    newest = versions[0].version
    names: dict[int | None, str] = {}
    lost: list[Shown] = []
    gained: list[Shown] = []
    slices: list[Measured] = []
    since: Since | None = None
    trained_on, problem = 0, ""
    try:
        trained_on = service.trained_on(session, store, project, newest)
        if chosen:
            lost, gained = differing(store, chosen)
            since = since_first(session, store, chosen, rounds)
    except PrefloopError as error:
        problem = str(error)
    if chosen:
        names = queries.model_names(session, [chosen.round.policy_after_id, chosen.round.policy_before_id])
        slices = queries.slices_of(session, chosen.run_id, suite.id)
    return SuitePage(
        suite=suite,
        versions=versions,
        rounds=rounds,
        chosen=chosen,
        new=names.get(chosen.round.policy_after_id, "new") if chosen else "",
        before=names.get(chosen.round.policy_before_id, "previous") if chosen else "",
        slices=slices,
        lost=lost,
        gained=gained,
        since=since,
        trained_on=trained_on,
        reach=reach(newest.cases),
        problem=problem,
        on_demand=queries.on_demand(session, suite.id, MOST_ROUNDS),
        demand=demand(session, project.id),
    )


class Since(NamedTuple):
    """How a policy does beside the first one that took the same version: what all rounds in between cost together."""

    first: str
    number: int  # of the round in which that one was the policy before
    score: Score


def since_first(session: Session, store: ArtifactStore, chosen: Measured, rounds: Sequence[Measured]) -> Since | None:
    """None if that first policy is the one before, whose difference is shown anyway, or if an answer is gone.

    Args:
        rounds: that ran the suite, newest first.
    """
    earlier = [each for each in rounds if each.version.id == chosen.version.id and each.round.id <= chosen.round.id]
    oldest = earlier[-1]
    if oldest.round.policy_before_id == chosen.round.policy_before_id:
        return None
    new = {each["id"]: each["passed"] for each in service.answers(store, chosen.run_id, chosen.version.id)}
    then = {each["id"]: each["passed_before"] for each in service.answers(store, oldest.run_id, chosen.version.id)}
    if not new or new.keys() != then.keys():
        return None
    names = queries.model_names(session, [oldest.round.policy_before_id])
    found = score(list(new.values()), [then[id_] for id_ in new])
    return Since(names.get(oldest.round.policy_before_id, "the first policy"), oldest.round.number, found)


def differing(store: ArtifactStore, measured: Measured) -> tuple[list[Shown], list[Shown]]:
    """Cases that got worse, and cases that got better, in the suite's order."""
    cases = {case.id: case for case in kept(store, measured.version.location)}
    found = service.answers(store, measured.run_id, measured.version.id)
    lost = [each for each in found if each["passed_before"] and not each["passed"]]
    gained = [each for each in found if each["passed"] and not each["passed_before"]]
    return _shown(cases, lost), _shown(cases, gained)


def _shown(cases: dict[str, Case], answers: Sequence[dict[str, Any]]) -> list[Shown]:
    return [
        Shown(
            case.id,
            case.slice,
            asked_in(case.messages),
            wanted(case),
            case.given.get("good", ""),
            case.given.get("bad", ""),
            answer,
        )
        for answer in answers[:MOST_CASES]
        if (case := cases.get(answer["id"]))
    ]

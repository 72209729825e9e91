"""AI judges: added, tested, admitted by the alternative annotator test, paused when they change; what training reads.

A judge stands beside people and never among them: nothing here writes to the tables of labelers or of judgments. Each
function works in the caller's transaction and never commits. Rounds call this package; it calls none of theirs.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from math import floor
from typing import Any, NamedTuple

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.audit import audit
from app.domain import alternative_annotator
from app.domain.judges import PROMPT_VERSION, Average, Figures, agreement, figures, moving
from app.domain.proportions import wilson
from app.errors import Conflict
from app.judges import choosing_queries, queries, training_queries
from app.judges.forms import AdmissionForm, JudgeForm, RunForm, SettingsForm
from app.judges.keys import seal
from app.judges.training_queries import ForTraining
from app.models import Judge, JudgeAdmission, Project, Run, User
from app.queue import enqueue_run
from app.specs import JudgeSpec

ANCHORS = 30  # comparisons of the frozen set
# Shared items since the admission: from fewer, agreement pauses nobody.
FEWEST_SINCE = 20


# ---- judges ----------------------------------------------------------------------------------------------------------


def add(session: Session, project: Project, operator: User, form: JudgeForm, secret: bytes) -> Judge:
    """Raises Conflict if the project has a judge of this name."""
    judge = Judge(project_id=project.id, name=form.name, url=form.url, model=form.model, created_by=operator.id)
    _set(judge, form, secret)
    try:
        with session.begin_nested():
            session.add(judge)
            session.flush()
    except IntegrityError:
        raise Conflict(f"The project has a judge “{form.name}” already.", "Choose another name.") from None
    audit(
        session,
        operator.id,
        "judge.added",
        project.id,
        judge=judge.id,
        name=judge.name,
        url=judge.url,
        model=judge.model,
    )
    return judge


def change(session: Session, judge: Judge, operator: User, form: SettingsForm, secret: bytes) -> None:
    """Changes key, prices and limits. Name, address and model stay: with others it would be another judge."""
    _set(judge, form, secret)
    session.flush()
    audit(session, operator.id, "judge.changed", judge.project_id, judge=judge.id, name=judge.name)


def _set(judge: Judge, form: SettingsForm, secret: bytes) -> None:
    judge.key_variable = form.key_variable
    if form.key:
        judge.sealed_key = seal(secret, form.key)
    elif form.key_variable or form.forget_key:
        judge.sealed_key = None
    judge.prompt_price, judge.completion_price = form.prompt_price, form.completion_price
    judge.timeout_seconds, judge.retries = form.timeout_seconds, form.retries
    judge.concurrency, judge.max_tokens = form.concurrency, form.max_tokens


def switch(session: Session, judge: Judge, operator: User, *, on: bool) -> None:
    """Off: it judges nothing more and reaches no training; what it said stays. Twice changes nothing. Whoever switches
    it off also cancels its run."""
    queries.lock(session, judge)  # before a run starts, or after, and then it is seen
    if on == (judge.off_at is None):
        return
    judge.off_at = None if on else datetime.now(UTC)
    audit(session, operator.id, "judge.on" if on else "judge.off", judge.project_id, judge=judge.id, name=judge.name)


# ---- runs ------------------------------------------------------------------------------------------------------------


def start_test(session: Session, judge: Judge, operator: User) -> Run:
    """Enqueues a run that asks the endpoint about one made-up comparison.

    Raises:
        Conflict: the judge is switched off, or a run of it is under way.
    """
    return _start(session, judge, operator, None, (), ())


def start(session: Session, judge: Judge, operator: User, form: RunForm) -> Run:
    """Enqueues a run that judges comparisons, the anchors of the newest admission first.

    Raises:
        Conflict: nothing is left to judge, no rubric is published, the judge is off, or a run of it is under way.
    """
    rubric = queries.newest_rubric(session, judge.project_id)
    if rubric is None:
        raise Conflict("The project has no published rubric.", "Publish one: judges judge by it, as people do.")
    found: dict[int, None] = {}
    for what in form.what:
        found |= dict.fromkeys(choosing_queries.to_judge(session, judge, rubric.id, what, form.most - len(found)))
    admission = queries.admissions(session, judge.project_id).get(judge.id)
    anchors = tuple(each["comparison"] for each in admission.anchors) if admission and admission.admitted else ()
    if not found and not anchors:
        raise Conflict(
            f"{judge.name} has judged all of them already.", "Choose other comparisons, or wait for new ones."
        )
    return _start(session, judge, operator, rubric.id, anchors, tuple(found))


def _start(
    session: Session,
    judge: Judge,
    operator: User,
    rubric_id: int | None,
    anchors: tuple[int, ...],
    comparisons: tuple[int, ...],
) -> Run:
    session.flush()
    queries.lock(session, judge)
    if judge.off_at is not None:
        raise Conflict(f"{judge.name} is switched off.", "Switch it on first.")
    if under_way(session, judge):
        raise Conflict(f"{judge.name} is at work already.", "Wait until its run is done, or cancel it.")
    spec = JudgeSpec(
        judge=judge.id,
        url=judge.url,
        model=judge.model,
        rubric=rubric_id,
        prompt_version=PROMPT_VERSION,
        anchors=anchors,
        comparisons=comparisons,
        max_tokens=judge.max_tokens,
    )
    run = Run(project_id=judge.project_id, kind="judge", spec=spec.model_dump(mode="json"))
    session.add(run)
    session.flush()
    enqueue_run(session, run.id)
    audit(session, operator.id, "judge.run", judge.project_id, judge=judge.id, name=judge.name, run=run.id)
    return run


def under_way(session: Session, judge: Judge) -> Run | None:
    """The judge's run that waits or works."""
    newest = queries.runs(session, judge, 1)
    return newest[0] if newest and newest[0].state in ("queued", "running") else None


# ---- admission -------------------------------------------------------------------------------------------------------


def admit(session: Session, judge: Judge, operator: User, form: AdmissionForm) -> JudgeAdmission:
    """Tests the judge beside people under the newest rubric version, and stores the outcome, which counts from now on.

    If it is admitted, its anchors are frozen: shared items drawn by chance, with what people and the judge said.

    Raises:
        Conflict: no rubric is published.
    """
    rubric = queries.newest_rubric(session, judge.project_id)
    if rubric is None:
        raise Conflict("The project has no published rubric.", "Publish one: a judge is admitted to a version.")
    session.flush()
    queries.lock(session, judge)
    judged = queries.verdicts(session, judge.id, rubric.id, judge.served_model or "")
    said = queries.people_on(session, rubric.id, judged)
    outcome = alternative_annotator.beside_people(judged, said, form.epsilon, form.q)
    people = _sides(said)
    found = agreement(judged, people)
    anchors: list[dict[str, Any]] = []
    baseline: Figures | None = None
    if outcome.passed:
        drawn = sorted(random.Random(judge.id).sample(sorted(people), min(ANCHORS, len(people))))
        rows = queries.orders(session, judge.id, rubric.id, drawn)
        anchors = [{"comparison": id_, "orders": list(rows[id_]), "people": people[id_]} for id_ in drawn]
        baseline = figures([rows[id_] for id_ in drawn], [people[id_] for id_ in drawn])
    admission = JudgeAdmission(
        judge_id=judge.id,
        rubric_id=rubric.id,
        admitted=outcome.passed,
        reason=outcome.reason,
        epsilon=form.epsilon,
        q=form.q,
        omega=outcome.omega,
        advantage=outcome.advantage,
        agreement=found[0] if found else None,
        items=found[1] if found else 0,
        baseline=baseline._asdict() if baseline else {},
        result=[each._asdict() for each in outcome.beside],
        anchors=anchors,
        served_model=judge.served_model or "",
        created_by=operator.id,
    )
    session.add(admission)
    session.flush()
    audit(
        session,
        operator.id,
        "judge.admitted" if outcome.passed else "judge.not_admitted",
        judge.project_id,
        judge=judge.id,
        name=judge.name,
        rubric=rubric.version,
        omega=outcome.omega,
    )
    return admission


def _sides(said: Sequence[alternative_annotator.Said]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = defaultdict(list)
    for each in said:
        found[each.item].append(each.side)
    return dict(found)


# ---- drift, and when a judge is paused -------------------------------------------------------------------------------


class Since(NamedTuple):
    """A judge since its admission.

    Attributes:
        agreement, items: with people, on shared and calibration items judged since; none before the first.
        low, high: the 95% interval of that agreement.
        runs: by run, what the anchors said.
        charts: by figure (agreement, flips, position), its moving average by run.
        changed: share of anchors whose verdict in the newest run is another than at the admission.
    """

    agreement: float | None
    items: int
    low: float
    high: float
    runs: list[tuple[int, Figures]]
    charts: dict[str, list[Average]]
    changed: float | None

    @property
    def alarms(self) -> list[str]:
        """Figures whose moving average is outside its limits after the newest run."""
        return [name for name, averages in self.charts.items() if averages and averages[-1].alarms]


FIGURES = {"agreement": "Agreement with people", "flips": "Contradicts itself", "position": "Chose what stood first"}


def since_admission(session: Session, judge: Judge, admission: JudgeAdmission) -> Since:
    """How the judge does since a test that it passed."""
    value, items = queries.agreement_since(session, judge.id, admission.rubric_id, admission.created_at)
    low, high = (value is not None and wilson(value * items, items)) or (0.0, 1.0)
    anchors = {each["comparison"]: each for each in admission.anchors}
    by_run: dict[int, list[Any]] = defaultdict(list)
    for row in queries.anchor_rows(session, judge.id, admission.created_at, anchors):
        by_run[row.run_id].append(row)
    # What the newest run judged, and what people say of it now: comparisons are withdrawn and judgments taken back. The
    # judge at its admission is measured on the same, or the difference would be one of items and people.
    kept = sorted(row.comparison_id for row in next(reversed(by_run.values()))) if by_run else []
    on_anchors = _sides(queries.people_on(session, admission.rubric_id, kept))
    before = figures([tuple(anchors[id_]["orders"]) for id_ in kept], [on_anchors.get(id_, []) for id_ in kept])
    runs = []
    for run_id, every in by_run.items():
        rows = [row for row in every if row.comparison_id in kept]
        said = figures(
            [(row.first, row.second) for row in rows], [on_anchors.get(row.comparison_id, []) for row in rows]
        )
        if said is not None:
            runs.append((run_id, said))
    charts: dict[str, list[Average]] = {}
    for name in FIGURES:
        begins = getattr(before, name, None)
        values = [value for _, said in runs if (value := getattr(said, name)) is not None]
        if begins is not None and values:
            # Either order of an anchor chooses a side.
            charts[name] = moving(begins, values, len(kept) * (2 if name == "position" else 1))
    changed = None
    if runs:
        newest = by_run[runs[-1][0]]
        then = {id_: each["orders"] for id_, each in anchors.items()}
        verdict = [(row.verdict, then[row.comparison_id]) for row in newest]
        changed = sum(now != (was[0] if was[0] == was[1] else 0) for now, was in verdict) / len(verdict)
    return Since(value, items, low, high, runs, charts, changed)


def look(session: Session, project_id: int) -> list[str]:
    """Pauses admitted judges that changed; returns why, in words.

    A judge is paused when, since its admission, the 95% interval of its agreement with people (20 shared or calibration
    items at least) lies wholly below the agreement at the admission; when a moving average of its anchors is outside
    its limits; or when its endpoint reports another model. A new admission test ends the pause.
    """
    paused = []
    for judge in queries.judges(session, project_id):
        admission = queries.admissions(session, project_id).get(judge.id)
        if admission is None or not admission.admitted or admission.paused_at is not None:
            continue
        if reason := _why_paused(session, judge, admission):
            admission.paused_at, admission.pause_reason = datetime.now(UTC), reason
            session.flush()
            audit(session, None, "judge.paused", project_id, judge=judge.id, name=judge.name, reason=reason)
            paused.append(f"{judge.name}: {reason}")
    return paused


def _why_paused(session: Session, judge: Judge, admission: JudgeAdmission) -> str:
    newest = queries.runs(session, judge, 1)
    served = queries.served_in(session, newest[0].id) if newest else []
    served += [judge.served_model] if judge.served_model else []  # of a test
    if admission.served_model and (others := [name for name in served if name != admission.served_model]):
        return f"The endpoint reports the model {others[0]}; at the admission it was {admission.served_model}."
    since = since_admission(session, judge, admission)
    if since.items >= FEWEST_SINCE and admission.agreement is not None and since.high < admission.agreement:
        return (
            f"It agrees with people on {since.agreement:.0%} of {since.items} items since its admission (95% interval "
            f"{since.low:.0%} to {since.high:.0%}); at the admission it was {admission.agreement:.0%}."
        )
    if alarms := since.alarms:
        named = ", ".join(FIGURES[name].lower() for name in alarms)
        return f"On the anchors a moving average is outside its limits: {named}."
    return ""


def after_run(session: Session, run: Run) -> None:
    """Update the judge after a run has ended, in the run's transaction."""
    look(session, run.project_id)


# ---- what a round reads ----------------------------------------------------------------------------------------------


def for_training(session: Session, project_id: int, share: float, people: int, seed: int) -> list[ForTraining]:
    """Comparisons that only admitted judges judged, at most this share of what is trained on, drawn by the seed.

    Args:
        people: comparisons decided by people that are trained on.
    """
    most = allowed(share, people)
    if not most:
        return []
    found = training_queries.for_training(session, project_id)
    drawn = found if len(found) <= most else random.Random(seed).sample(found, most)
    return sorted(drawn)


def allowed(share: float, people: int) -> int:
    """At most so many that theirs is `share` of all comparisons trained on."""
    return floor(share / (1 - share) * people + 1e-9) if 0 < share < 1 else 0

"""Taking judgments.

The only place that turns a preference for a side shown into one in canonical order.
"""

from uuid import UUID

from sqlalchemy.orm import Session

from app.domain import scale
from app.errors import Conflict, Gone, InvalidInput
from app.labeling import queries
from app.labeling.assigning import own_lease
from app.labeling.forms import LabelForm
from app.labeling.settling import settle
from app.models import Judgment, Project, Rubric, User


def submit(session: Session, project: Project, lease_id: UUID, labeler: User, form: LabelForm) -> Judgment:
    """Takes a judgment; the last one wanted settles the comparison. The same form again changes nothing.

    A lease that ran out does no harm as long as nobody else took its place. Nothing is written when this raises.

    Raises:
        NotFound: no such lease in this project.
        Forbidden: another labeler's lease.
        Conflict: judged already (in another tab), or under a rubric that has changed since.
        Gone: the time ran out and others took the place, or the comparison was closed.
        InvalidInput: the answer is not one that the rubric allows.
    """
    queries.lock_labeler(session, labeler.id)
    repeated = queries.judgment_by_key(session, form.idempotency_key)
    if repeated and _says(repeated) == (labeler.id, lease_id, form.preference, form.rationale):
        return repeated
    lease = own_lease(session, project, lease_id, labeler)
    comparison = queries.lock_comparison(session, lease.comparison_id)
    leases = queries.lock_leases(session, comparison.id, labeler.id)
    if repeated or queries.live_judgment(session, comparison.id, labeler.id):
        raise Conflict("You have judged this comparison already, perhaps in another tab.", "Your first answer stands.")
    if comparison.state == "withdrawn":
        raise Gone("This comparison was withdrawn while you had it.", "No answer to it is needed any more.")
    if comparison.state != "open":
        raise _taken()
    if form.rubric_id != comparison.rubric_id:
        raise Conflict(
            "A new version of the rubric applies to this comparison since you opened it.",
            "Please read what changed and judge once more.",
        )
    holds_place = any(own.state == "live" for own, _age in leases)
    if not holds_place and comparison.judgment_count + comparison.lease_count >= comparison.overlap:
        raise _taken()
    rubric = session.get_one(Rubric, comparison.rubric_id)
    preference = _check(form, rubric)

    age_ms = 0
    for own, age in leases:
        if own.id == lease_id:
            own.state, age_ms = "submitted", age
        elif own.state == "live":
            own.state = "released"
    session.flush()  # The place must be free before the judgment takes it: see overlap_never_exceeded.
    judgment = Judgment(
        comparison_id=comparison.id,
        labeler_id=labeler.id,
        rubric_id=rubric.id,
        lease_id=lease_id,
        preference=scale.canonical(preference, swapped=lease.swapped),
        rationale=form.rationale,
        swapped=lease.swapped,
        duration_ms=age_ms if form.duration_ms is None else min(form.duration_ms, age_ms),
        idempotency_key=form.idempotency_key,
    )
    session.add(judgment)
    session.flush()
    settle(session, [comparison.id])
    return judgment


def _says(judgment: Judgment) -> tuple[int, UUID | None, int, str]:
    """Who said what where, as it was shown. The same key with anything else is a page from the browser's history."""
    shown = scale.canonical(judgment.preference, swapped=bool(judgment.swapped))
    return judgment.labeler_id, judgment.lease_id, shown, judgment.rationale


def _taken() -> Gone:
    return Gone("Your time for this comparison ran out and others took it.", "Your answer was not needed any more.")


def _check(form: LabelForm, rubric: Rubric) -> int:
    """The preference, as shown, if the rubric allows the answer."""
    if form.preference is None:
        raise InvalidInput("No preference was chosen.", "Choose one of the steps between the two responses.")
    if form.preference not in scale.values(rubric.strengths, allow_tie=rubric.allow_tie):
        if form.preference == 0:
            raise InvalidInput("This rubric has no tie.", "Choose the response that is better, if only slightly.")
        raise InvalidInput("This preference is not on the rubric's scale.", "Choose one of the steps shown.")
    if rubric.rationale_rule == "required" and not form.rationale:
        raise InvalidInput("This rubric asks for a reason with every judgment.", "Say in a sentence why.")
    return form.preference

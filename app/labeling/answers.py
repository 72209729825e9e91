"""Submitting, undoing and changing answers.

Only this module converts a preference between the sides shown into canonical order.
"""

from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from app.access import gate, gate_queries
from app.documents import AdaptiveOverlap, LabelingSettings
from app.domain import ranking, scale
from app.errors import Conflict, Forbidden, Gone, InvalidInput, NotFound
from app.labeling import answer_queries, choosing, leases, queries, recusal
from app.labeling.checking import Said, check
from app.labeling.forms import LabelForm
from app.labeling.settling import settle
from app.models import Comparison, Judgment, Lease, Project, Rubric, User


def submit(session: Session, project: Project, lease_id: UUID, labeler: User, form: LabelForm) -> Judgment:
    """Store an answer; the last one that the comparison needs settles it. Sending the same form again changes nothing.

    A ranking's answer becomes a judgment on each of its pairs, and the judgment on the offered pair is returned. An
    expired lease is still accepted if nobody else has taken its place. Nothing is written when this raises.

    Raises:
        NotFound: no such lease in this project.
        Forbidden: another labeler's lease, or the labeler is paused or was removed.
        Conflict: judged already (in another tab), or under a rubric that has changed since.
        Gone: the time ran out and others took the place, or the comparison was closed.
        InvalidInput: the rubric does not allow the answer.
    """
    gate_queries.lock_labeler(session, labeler.id)
    lease, comparison = leases.own_lease(session, project, lease_id, labeler)
    pairs = answer_queries.lock_with_ranking(session, comparison)
    offered = pairs[0]
    so_far = answer_queries.so_far(session, offered, labeler.id, form.idempotency_key)
    sent_before = session.get(Judgment, so_far.sent_before_id) if so_far.sent_before_id else None
    if sent_before and _is_same(session, sent_before, lease, pairs, form):
        return sent_before
    gate.require_open(so_far.gate, begun=True)
    if sent_before or so_far.is_judged:
        raise Conflict("You have judged this comparison already, perhaps in another tab.", "Your first answer stands.")
    if any(own.state == "recused" for own, _age in so_far.leases):
        raise Gone(
            "You have seen other people's judgments, so you can no longer judge this comparison.",
            "Go on with the next comparison.",
        )
    if offered.state == "withdrawn":
        raise Gone("This comparison was withdrawn while you had it.", "It no longer needs an answer.")
    if offered.state != "open":
        raise _taken()
    if form.rubric_id != offered.rubric_id:
        raise Conflict(
            "A new version of the rubric applies to this comparison since you opened it.",
            "Please read what changed and judge again.",
        )
    holds_place = any(own.state == "live" for own, _age in so_far.leases)
    # The comparison may have been kept for somebody else in the meantime.
    if not holds_place and not (_has_room(offered) and choosing.choose_this(session, project, labeler, offered.id)):
        raise _taken()
    said = check(form, so_far.rubric, ranked=_ranked(lease))

    age_ms = 0
    for own, age in so_far.leases:
        if own.id == lease_id:
            own.state, age_ms = "submitted", age
        elif own.state == "live":
            own.state = "released"
    session.flush()  # Free the place before the judgment takes it: see overlap_never_exceeded.
    # A reviewer may have decided single pairs of a ranking already.
    wanted = [pair for pair in pairs if pair is offered or (pair.state == "open" and _has_room(pair))]
    duration_ms = age_ms if form.duration_ms is None else min(form.duration_ms, age_ms)
    return _write(session, pairs, wanted, lease, said, form.idempotency_key, duration_ms)


def undo(session: Session, project: Project, labeler: User) -> UUID:
    """Take back the labeler's last answer in this project, show its card again, and return its lease.

    Raises:
        Conflict: there is no answer, or it can no longer be changed.
        Forbidden: the labeler is paused or was removed.
    """
    gate_queries.lock_labeler(session, labeler.id)
    gate.require(session, project, labeler, begun=True)
    last = answer_queries.last_answer(session, project.id, labeler.id)
    if last is None or last.lease_id is None:
        raise Conflict("You have no answer here to undo.")
    _take_back(session, project, last, "undone")
    lasting = timedelta(minutes=project.lease_minutes)
    held = queries.renew_live_leases(session, project.id, labeler.id, lasting)
    lease = session.get_one(Lease, last.lease_id, with_for_update=True)
    lease.state = "live"
    session.flush()
    queries.renew_live_leases(session, project.id, labeler.id, lasting)
    # The card that was on the desk comes next, and the card preloaded after it goes back to the queue.
    queries.release_leases(session, held[1:])
    return lease.id


def edit(session: Session, project: Project, judgment_id: int, labeler: User, form: LabelForm) -> Judgment:
    """Replace an answer. The old one is kept as superseded. Sending the same form again changes nothing.

    Raises:
        NotFound, Forbidden: no such judgment here, or somebody else's; or the labeler is paused or was removed.
        Conflict: it can no longer be changed.
        InvalidInput: the rubric does not allow the answer.
    """
    gate_queries.lock_labeler(session, labeler.id)
    gate.require(session, project, labeler, begun=True)
    before = own_judgment(session, project, judgment_id, labeler)
    lease = session.get_one(Lease, before.lease_id)
    pairs = answer_queries.lock_pairs(session, lease.comparison_id)
    sent_before = answer_queries.judgment_by_key(session, form.idempotency_key)
    if sent_before and _is_same(session, sent_before, lease, pairs, form):
        return sent_before
    if sent_before:
        raise Conflict(
            "This form was already sent with a different answer.", "Open the answer again from your history."
        )
    if before.superseded_at is not None:
        raise Conflict("This answer was already replaced.", "Open the newest answer from your history.")
    if form.rubric_id != before.rubric_id:
        raise InvalidInput("This form belongs to another version of the rubric.", "Open the answer once more.")
    said = check(form, session.get_one(Rubric, before.rubric_id), ranked=_ranked(lease))
    judged = _take_back(session, project, before, "edited")
    wanted = [pair for pair in pairs if pair.id in judged]
    return _write(session, pairs, wanted, lease, said, form.idempotency_key, before.duration_ms)


def own_judgment(session: Session, project: Project, judgment_id: int, labeler: User) -> Judgment:
    """Return a judgment that this labeler gave on the labeling page; for a ranking, the one on the offered pair.

    Raises:
        NotFound, Forbidden: no such judgment here, or somebody else's.
    """
    judgment = answer_queries.find_judgment(session, project.id, judgment_id)
    if judgment is None or judgment.lease_id is None:
        raise NotFound("There is no such answer in this project.", "Open it from your history.")
    if judgment.labeler_id != labeler.id:
        raise Forbidden("Somebody else gave this answer.", "You can change only your own answers.")
    return answer_queries.said_on(session, judgment)[0]


def why_final(session: Session, judgment: Judgment) -> str:
    """Say why an answer can no longer be changed; empty if it can."""
    if judgment.superseded_at is not None:
        return "It was replaced or undone."
    if recusal.is_recused(session, judgment.comparison_id, judgment.labeler_id):
        return "You have seen other people's judgments."
    parts = answer_queries.said_on(session, judgment)
    judged = {part.comparison_id for part in parts}
    if judged == answer_queries.changeable(session, parts, queries.CHANGEABLE_FOR):
        return ""
    states = answer_queries.states(session, judged)
    if "withdrawn" in states:
        return "The comparison was withdrawn."
    if "adjudicated" in states:
        return "A reviewer has decided this comparison."
    if "requested" in states:
        return "The comparison is being reviewed."
    if answer_queries.is_taken_apart(session, parts):
        return "A reviewer has asked more people about part of it."
    return "It is more than an hour old, or a round has started since."


def changeable_by(session: Session, labeler_id: int, comparison_ids: Collection[int]) -> set[int]:
    """Return the comparisons whose answer the labeler can still change."""
    said = answer_queries.live_judgments(session, comparison_ids, labeler_id)
    return answer_queries.changeable(session, said, queries.CHANGEABLE_FOR)


def _take_back(session: Session, project: Project, judgment: Judgment, reason: str) -> set[int]:
    """Supersede an answer and reopen what it had closed; return the comparisons that it covered."""
    answer_queries.lock_pairs(session, judgment.comparison_id)
    if why := why_final(session, judgment):
        raise Conflict(f"This answer can no longer be changed. {why}", "Tell an admin if it needs a change.")
    parts = answer_queries.said_on(session, judgment)
    judged = {part.comparison_id for part in parts}
    adaptive = LabelingSettings.model_validate(project.labeling).adaptive or AdaptiveOverlap()
    answer_queries.supersede(session, parts, reason)
    answer_queries.reopen(session, judged, adaptive.at_least)
    answer_queries.unflag(session, judged)
    session.expire_all()
    return judged


def _write(
    session: Session,
    locked: Sequence[Comparison],
    pairs: Sequence[Comparison],
    lease: Lease,
    said: Said,
    idempotency_key: UUID,
    duration_ms: int | None,
) -> Judgment:
    """Store the answer, settle the comparisons that it completes, and return the judgment on the first pair.

    Args:
        locked: the comparison, or all pairs of its ranking.
        pairs: the locked comparisons that get a judgment.
    """
    judgments = [
        Judgment(
            comparison_id=pair.id, labeler_id=lease.labeler_id, rubric_id=pair.rubric_id, lease_id=lease.id, **values
        )
        for pair, values in zip(pairs, _values(pairs, lease, said), strict=True)
    ]
    # One answer has one key and one duration, however many pairs it covers.
    judgments[0].idempotency_key, judgments[0].duration_ms = idempotency_key, duration_ms
    session.add_all(judgments)
    session.flush()
    if said.flags:
        answer_queries.flag(session, [pairs[0].id])  # a ranking's flags go to its first pair
    settle(session, [pair.id for pair in locked], is_locked=True)
    for pair in locked:
        session.expire(pair)  # triggers and settle() changed the row in the database
    return judgments[0]


def _values(pairs: Sequence[Comparison], lease: Lease, said: Said) -> list[dict[str, Any]]:
    """Return the judgment's column values for each pair, in canonical order.

    A ranking's flags and rationale go to its first pair.
    """
    remarks: dict[str, Any] = {"flags": said.flags, "rationale": said.rationale}
    if said.ranks is None or lease.shown is None:
        swapped = lease.swapped
        preference = None if said.preference is None else scale.canonical(said.preference, swapped=swapped)
        aspects = {name: scale.canonical(value, swapped=swapped) for name, value in said.aspects.items()}
        return [{"preference": preference, "both_bad": said.both_bad, "aspects": aspects, "swapped": swapped} | remarks]
    rank = dict(zip(lease.shown, said.ranks, strict=True))
    values = []
    for pair in pairs:
        a, b = pair.completion_a_id, pair.completion_b_id
        swapped = lease.shown.index(b) < lease.shown.index(a)
        about: dict[str, Any] = {"preference": ranking.preference(rank[a], rank[b]), "swapped": swapped}
        values.append(about | {"both_bad": False, "aspects": {}, "flags": [], "rationale": ""})
    values[0] |= remarks
    return values


def _is_same(
    session: Session, sent_before: Judgment, lease: Lease, pairs: Sequence[Comparison], form: LabelForm
) -> bool:
    """Tell whether the answer with this key said the same. If not, the form came from a page in the
    browser's history."""
    if sent_before.lease_id != lease.id:
        return False
    try:
        said = check(form, session.get_one(Rubric, sent_before.rubric_id), ranked=_ranked(lease))
    except InvalidInput:
        return False
    stored = {part.comparison_id: part for part in answer_queries.said_on(session, sent_before)}
    judged = [pair for pair in pairs if pair.id in stored]
    return all(
        all(getattr(stored[pair.id], name) == value for name, value in values.items())
        for pair, values in zip(judged, _values(judged, lease, said), strict=True)
    )


def _ranked(lease: Lease) -> int:
    return len(lease.shown or ())


def _has_room(comparison: Comparison) -> bool:
    return comparison.judgment_count + comparison.lease_count < comparison.overlap


def _taken() -> Gone:
    return Gone(
        "Your time for this comparison ran out, and other labelers judged it.", "Your answer was no longer needed."
    )

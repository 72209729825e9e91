"""Asking decided comparisons again under a newer rubric, and what that did to the agreement on them."""

from typing import NamedTuple

import numpy as np
from sqlalchemy.orm import Session

from app.audit import audit
from app.domain.figures import Figures, Patterns
from app.errors import Conflict, InvalidInput, NotFound
from app.models import Project, Rubric, User
from app.review import queries, relabel_queries
from app.review.forms import RelabelForm
from app.review.relabel_queries import PREFERENCES, Progress

# Asked again at one go; their rows stay locked meanwhile. More take another go.
AT_ONCE = 10_000


class Plan(NamedTuple):
    """What asking again would do: of the comparisons that fit, how many are asked again, for how many judgments."""

    fitting: int
    chosen: int
    judgments: int


def target(session: Session, project: Project, rubric_id: int | None) -> Rubric:
    """The rubric version to ask again under, the newest where none is named.

    Raises:
        NotFound: the project has published none.
        InvalidInput: that one is not its newest: nobody should judge by a version that was replaced.
    """
    versions = queries.versions(session, project.id)
    if not versions:
        raise NotFound("This project has no published rubric yet.", "Publish one on the rubric page.")
    if rubric_id is not None and rubric_id != versions[0].id:
        raise InvalidInput(
            "Comparisons can be asked again under the newest rubric version only.",
            f"That is version {versions[0].version}: open this page without choosing another.",
        )
    return versions[0]


def plan(session: Session, project: Project, form: RelabelForm) -> Plan:
    fitting = relabel_queries.count(session, project.id, form)
    chosen = min(fitting, _limit(form))
    return Plan(fitting, chosen, chosen * _overlap(project, form))


def relabel(session: Session, project: Project, admin: User, form: RelabelForm, expected: int) -> int:
    """Asks the chosen comparisons again; returns how many. What was said before stays stored, superseded.

    Args:
        expected: how many the admin was told it would be.

    Raises:
        Conflict: it would be another number now; nothing was changed.
        InvalidInput: none fits, or the version is not the newest.
    """
    rubric = target(session, project, form.rubric)
    ids = relabel_queries.lock(session, project.id, form, _limit(form))
    if len(ids) != expected:
        raise Conflict(
            f"It would be {len(ids):,} comparisons now, not {expected:,}: some were decided or changed in the "
            f"meantime.",
            "Nothing was changed. Check the new number and confirm it.",
        )
    if not ids:
        raise InvalidInput("No comparison matches these conditions.", "Remove some conditions.")
    overlap = _overlap(project, form)
    relabel_queries.ask_again(session, project.id, ids, rubric.id, overlap)
    audit(
        session,
        admin.id,
        "comparisons.relabeled",
        project.id,
        version=rubric.version,
        comparisons=len(ids),
        overlap=overlap,
        conditions={name: value for name, value in form.model_dump(exclude={"rubric", "overlap"}).items() if value},
    )
    return len(ids)


def _limit(form: RelabelForm) -> int:
    return min(int(form.sample or AT_ONCE), AT_ONCE)


def _overlap(project: Project, form: RelabelForm) -> int:
    return form.overlap or project.overlap


class Outcome(NamedTuple):
    """Agreement before and after on exactly the comparisons asked again and decided since.

    turned: how many of them came out on another side (A, tie or B, by the mean preference).
    """

    before: Figures
    after: Figures
    turned: int


class Relabeled(NamedTuple):
    progress: Progress
    outcome: Outcome | None


def relabeled(session: Session, rubric: Rubric) -> Relabeled:
    """How far asking again under a version has come, and what it changed; no outcome before anything is decided."""
    progress = relabel_queries.progress(session, rubric.id)
    patterns = relabel_queries.patterns(session, rubric.id) if progress.decided else []
    if not patterns:
        return Relabeled(progress, None)
    before = np.array([pattern.before for pattern in patterns], dtype=np.int64)
    after = np.array([pattern.after for pattern in patterns], dtype=np.int64)
    frequencies = np.array([pattern.comparisons for pattern in patterns], dtype=np.int64)
    turned = np.sign(before @ np.array(PREFERENCES)) != np.sign(after @ np.array(PREFERENCES))
    return Relabeled(
        progress,
        Outcome(_figures(before, frequencies), _figures(after, frequencies), int(frequencies[turned].sum())),
    )


def _figures(counts: np.ndarray, frequencies: np.ndarray) -> Figures:
    """Intervals from the same draws every time, so that a page that is reloaded says the same."""
    return Patterns(counts, PREFERENCES).figures(
        np.arange(len(counts)), frequencies, categories=3, rng=np.random.default_rng(0)
    )

"""Relabeling: asking decided comparisons again under a newer rubric, and its effect on agreement."""

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

# Asked again in one transaction, which keeps the rows locked. More comparisons need further requests.
AT_ONCE = 10_000


class Plan(NamedTuple):
    """The effect of asking again: how many comparisons match, how many of them are asked again, and how many judgments
    that is."""

    fitting: int
    chosen: int
    judgments: int


def target(session: Session, project: Project, rubric_id: int | None) -> Rubric:
    """Return the rubric version to ask again under; the newest if none is given.

    Raises:
        NotFound: the project has published none.
        InvalidInput: it is not the newest: nobody should judge by a replaced version.
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
    """Ask the matching comparisons again; return how many. Old judgments stay stored as superseded.

    Args:
        expected: the number that the admin was shown.

    Raises:
        Conflict: the number is different now; nothing was changed.
        InvalidInput: none matches, or the version is not the newest.
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
    """Agreement before and after, on exactly the comparisons asked again and decided since.

    turned: how many of them changed sides (A, tie or B, by the mean preference).
    """

    before: Figures
    after: Figures
    turned: int


class Relabeled(NamedTuple):
    progress: Progress
    outcome: Outcome | None


def relabeled(session: Session, rubric: Rubric) -> Relabeled:
    """Return the progress and effect of asking again under a version; the outcome is None before
    anything is decided."""
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
    """Return figures whose intervals use a fixed seed, so a reloaded page shows the same numbers."""
    return Patterns(counts, PREFERENCES).figures(
        np.arange(len(counts)), frequencies, categories=3, rng=np.random.default_rng(0)
    )

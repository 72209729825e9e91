"""Consensus and labeler reliability: a fit over all judgments, or consensus of a few comparisons from the last fit.

The full fit runs when a snapshot is frozen, when somebody is removed, and when an admin asks. The short form runs
whenever comparisons settle.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from sqlalchemy.orm import Session

from app.documents import ConsensusMethod, LabelingSettings
from app.domain import consensus, crowd_bt, reliability
from app.domain.consensus import DIGITS, Consensus, Crowd, Decisions, Votes
from app.domain.reliability import UNKNOWN, Weights
from app.labelers import fitting_queries as queries
from app.models import Project

NOT_GIVEN = queries.NOT_GIVEN


class Fitted(BaseModel):
    """`project.fitted`: when the last fit ran, what it covered, and the weights of an average labeler."""

    model_config = ConfigDict(frozen=True)

    at: datetime
    method: ConsensusMethod
    judgments: int
    comparisons: int
    labelers: int
    iterations: int
    converged: bool
    ties: bool
    tie: float = 0.0
    weights: tuple[float, float]


class Said(NamedTuple):
    """The preferences stated on one comparison (at least one), by whom, on a scale with `strengths` steps each way."""

    labelers: Sequence[int]
    preferences: Sequence[int]
    strengths: int = 3


def last_fit(project: Project) -> Fitted | None:
    return Fitted.model_validate(project.fitted) if project.fitted else None


def decide(session: Session, project: Project, said: Sequence[Said]) -> list[Consensus]:
    """Return the consensus of comparisons by the project's method, with labelers weighted as in the last fit.

    Costs O(judgments given), plus one query if the method weights labelers. Every item of `said` needs at least one
    preference; for verdicts, use `app.domain.consensus.verdict`.
    """
    if not said:
        return []
    method = LabelingSettings.model_validate(project.labeling).consensus
    crowd = _crowd(last_fit(project))
    labelers = [labeler for each in said for labeler in each.labelers]
    by_labeler = queries.weights(session, project.id, set(labelers)) if method in ("dawid_skene", "crowd_bt") else {}
    votes = Votes(
        comparison=np.repeat(np.arange(len(said)), [len(each.labelers) for each in said]),
        preference=np.array([preference for each in said for preference in each.preferences]),
        strengths=np.array([each.strengths for each in said]),
        weights=np.array([by_labeler.get(labeler, crowd.weights) for labeler in labelers], float),
    )
    found = consensus.decide(method, votes, crowd)
    return [Consensus(*map(float, row)).rounded() for row in zip(*found, strict=True)]


def lock(session: Session, project: Project) -> None:
    """Let only one transaction at a time fit a project."""
    queries.lock(session, project.id)


def refit(session: Session, project: Project) -> Fitted:
    """Fit all live judgments of the project and write the results.

    Writes every labeler's reliability, and preference, p_b and p_tie of all comparisons that are decided or in review.
    Repeats are left out, because they add no new opinion. Dawid-Skene also measures labelers on verdicts and on answers
    to calibration items; it gives the reliabilities under every method. Objects loaded before are not refreshed.
    """
    lock(session, project)
    method = LabelingSettings.model_validate(project.labeling).consensus
    judged, compared = queries.judged(session, project.id), queries.compared(session, project.id)
    n = len(compared["id"])
    comparison = np.searchsorted(compared["id"], judged["comparison"])
    # Comparisons that were withdrawn or first judged between the two statements are left for the next fit.
    there = compared["id"][np.minimum(comparison, n - 1)] == judged["comparison"] if n else comparison < 0
    comparison, preference = comparison[there], judged["preference"][there]
    labeler_ids, labeler = np.unique(judged["labeler"][there], return_inverse=True)
    sides = np.sign(preference)

    fit = reliability.fit(comparison, labeler, sides, comparisons=n, labelers=len(labeler_ids), known=_known(compared))
    iterations, converged, difference = fit.iterations, fit.converged, None
    crowd = Crowd(fit.crowd, ties=fit.ties, tie=fit.tie)
    votes = Votes(comparison, preference, compared["strengths"], fit.weights[labeler])
    if method == "crowd_bt":
        _, items = np.unique(np.stack([compared["a"], compared["b"]], axis=1), return_inverse=True)
        items = items.reshape(-1, 2)
        # Comparisons that evaluate a policy must not train the next one, so they rate no response.
        rates = compared["evaluates"][comparison] == 0
        rating = comparison[rates], labeler[rates], sides[rates], items
        joint = crowd_bt.fit(*rating, labelers=len(labeler_ids))
        iterations, converged = iterations + joint.iterations, converged and joint.converged
        difference = crowd_bt.by_others(joint, *rating)
    found = consensus.decide(method, votes, crowd, difference)

    answered = np.bincount(comparison, minlength=n) > 0
    queries.write_consensus(session, _with_verdicts(compared, answered, found))
    queries.write_labelers(
        session,
        project.id,
        {
            "labeler": labeler_ids,
            "reliability": fit.reliability,
            "low": fit.low,
            "high": fit.high,
            "side": fit.weights[:, 0],
            "tie": fit.weights[:, 1],
        },
    )
    fitted = Fitted(
        at=datetime.now(UTC),
        method=method,
        judgments=len(preference),
        comparisons=n,
        labelers=len(labeler_ids),
        iterations=iterations,
        converged=converged,
        ties=crowd.ties,
        tie=crowd.tie,
        weights=crowd.weights,
    )
    project.fitted = fitted.model_dump(mode="json")
    session.flush()
    return fitted


def _crowd(fitted: Fitted | None) -> Crowd:
    if fitted is None:
        return Crowd()
    return Crowd(Weights(*fitted.weights), fitted.ties, fitted.tie)


def _known(compared: queries.Columns) -> NDArray[np.int64]:
    """Return (C,) the side of a verdict, or of a calibration item's answer; UNKNOWN for the others."""
    truth = np.where(compared["verdict"] != NOT_GIVEN, compared["verdict"], compared["gold"])
    return np.where(truth != NOT_GIVEN, np.sign(truth), UNKNOWN)


def _with_verdicts(compared: queries.Columns, answered: NDArray[np.bool_], found: Decisions) -> dict[str, NDArray[Any]]:
    """Return the columns to write: a verdict replaces the labelers' consensus, and comparisons with neither are left
    out."""
    columns = {name: np.array(values) for name, values in found._asdict().items()}
    for value in np.unique(compared["verdict"]):
        if value != NOT_GIVEN:
            for name, given in consensus.verdict(int(value))._asdict().items():
                if name in columns:
                    columns[name][compared["verdict"] == value] = given
    written = answered | (compared["verdict"] != NOT_GIVEN)
    columns["p_b"] = columns["p_b"].clip(10.0**-DIGITS, 1 - 10.0**-DIGITS)  # as in Consensus.rounded
    rounded: dict[str, NDArray[Any]] = {n: values[written].round(DIGITS) for n, values in columns.items()}
    return {"id": compared["id"][written]} | rounded

"""SQL of the consensus fit: reads all judgments as columns, and writes the results back through temporary tables."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import BigInteger, Integer, cast, func, or_, select, text
from sqlalchemy.orm import Session

from app.columns import load_columns, read_columns
from app.models import Adjudication, Comparison, Judgment, Project, ProjectLabeler, Rubric

NOT_GIVEN = 99  # stands for NULL; outside every scale
Columns = dict[str, NDArray[np.int64]]


def lock(session: Session, project_id: int) -> None:
    """Let only one transaction at a time fit a project."""
    session.execute(select(Project.id).where(Project.id == project_id).with_for_update(key_share=True))


def judged(session: Session, project_id: int) -> Columns:
    """Return comparison, labeler and preference of every live judgment that has a preference, ordered by
    judgment id."""
    found = (
        select(
            Judgment.comparison_id.label("comparison"),
            Judgment.labeler_id.label("labeler"),
            cast(Judgment.preference, BigInteger).label("preference"),
        )
        .join(Comparison, Comparison.id == Judgment.comparison_id)
        .where(Comparison.project_id == project_id, Comparison.state != "withdrawn", Comparison.purpose != "repeat")
        .where(Judgment.superseded_at.is_(None), Judgment.preference.is_not(None))
        .order_by(Judgment.id)
    )
    return read_columns(session, found)


def compared(session: Session, project_id: int) -> Columns:
    """Return every judged or adjudicated comparison, ordered by id.

    Columns: both completions, the rubric's strengths, gold and verdict (NOT_GIVEN if there is none), and whether it
    evaluates a policy (1 or 0).
    """
    found = (
        select(
            Comparison.id,
            Comparison.completion_a_id.label("a"),
            Comparison.completion_b_id.label("b"),
            cast(Rubric.strengths, BigInteger).label("strengths"),
            cast(func.coalesce(Comparison.gold, NOT_GIVEN), BigInteger).label("gold"),
            cast(func.coalesce(Adjudication.verdict, NOT_GIVEN), BigInteger).label("verdict"),
            cast(cast(Comparison.purpose == "human_eval", Integer), BigInteger).label("evaluates"),
        )
        .join(Rubric, Rubric.id == Comparison.rubric_id)
        .outerjoin(Adjudication, (Adjudication.comparison_id == Comparison.id) & (Comparison.state == "adjudicated"))
        .where(Comparison.project_id == project_id, Comparison.state != "withdrawn", Comparison.purpose != "repeat")
        .where(or_(Comparison.judgment_count > 0, Comparison.state == "adjudicated"))
        .order_by(Comparison.id)
    )
    return read_columns(session, found)


def weights(session: Session, project_id: int, labeler_ids: set[int]) -> dict[int, list[float]]:
    """Return the vote weights (side, tie) of the labelers that the last fit covered, by labeler."""
    found = select(ProjectLabeler.labeler_id, ProjectLabeler.fitted).where(
        ProjectLabeler.project_id == project_id, ProjectLabeler.labeler_id.in_(labeler_ids)
    )
    return {id_: fitted["weights"] for id_, fitted in session.execute(found) if "weights" in fitted}


CHANGED = """new.* FROM comparison JOIN fitted_consensus AS new ON comparison.id = new.id
    WHERE comparison.state IN ('settled', 'in_review', 'adjudicated')
        AND (comparison.consensus, comparison.p_b, comparison.p_tie)
            IS DISTINCT FROM (new.preference, new.p_b, new.p_tie)"""


def write_consensus(session: Session, columns: dict[str, NDArray[Any]]) -> None:
    """Write preference (as `consensus`), p_b and p_tie of comparisons that are decided or in review, if they changed.

    Rows are locked by ascending id, as in settling.
    """
    load_columns(session, "fitted_consensus", columns)
    session.execute(text(f"SELECT {CHANGED} ORDER BY comparison.id FOR NO KEY UPDATE OF comparison"))
    session.execute(
        text(
            f"UPDATE comparison SET consensus = changed.preference, p_b = changed.p_b, p_tie = changed.p_tie"
            f" FROM (SELECT {CHANGED}) AS changed WHERE comparison.id = changed.id"
        )
    )


def write_labelers(session: Session, project_id: int, columns: dict[str, NDArray[Any]]) -> None:
    """Write each labeler's reliability, its interval, and the vote weights `side` and `tie`."""
    load_columns(session, "fitted_labeler", columns)
    session.execute(
        text(
            "UPDATE project_labeler SET reliability = NULL, fitted = '{}' WHERE project_id = :project"
            " AND reliability IS NOT NULL AND labeler_id NOT IN (SELECT labeler FROM fitted_labeler)"
        ),
        {"project": project_id},
    )
    session.execute(
        text(
            """
            INSERT INTO project_labeler (project_id, labeler_id, reliability, fitted)
            SELECT :project, labeler, reliability, jsonb_build_object(
                'low', low, 'high', high, 'weights', jsonb_build_array(side, tie))
            FROM fitted_labeler
            ORDER BY labeler
            ON CONFLICT (project_id, labeler_id)
            DO UPDATE SET reliability = excluded.reliability, fitted = excluded.fitted
            """
        ),
        {"project": project_id},
    )

"""When a comparison has all it needs: settled, or sent to review."""

from collections.abc import Collection

from sqlalchemy.orm import Session

from app.labeling import queries


def settle(session: Session, comparison_ids: Collection[int]) -> int:
    """Closes those of the comparisons that have all their judgments; returns how many. The one rule for it:

    agreement is the share of pairs of judgments on the same side, consensus their mean preference; agreement below the
    project's review threshold sends the comparison to review. Objects loaded before are not refreshed.
    """
    return queries.settle(session, comparison_ids)

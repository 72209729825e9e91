"""Live counts of how often each pattern of answers occurs in a project: its agreement figures are read from them."""

from sqlalchemy import ForeignKey, Index, SmallInteger
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Id


class AgreementTally(Base):
    """So many comparisons of the project have come to have (n > 0), or no longer have (n < 0), exactly these answers.

    Kept by triggers on judgment, comparison and user_account; the sum of n by answers is how many comparisons have them
    now. Rows are only added, so that nobody waits for anybody; one in a thousand adds its project's rows up.

    Answers are those of live judgments that state a preference, ascending, each 9 * kind + preference + 4 with the
    position of the labeler's kind in USER_KINDS. Withdrawn comparisons and repeats do not count.
    """

    __tablename__ = "agreement_tally"
    __table_args__ = (Index("ix_agreement_tally_project", "project_id"),)

    id: Mapped[Id]
    project_id: Mapped[int] = mapped_column(ForeignKey("project.id"))
    answers: Mapped[list[int]] = mapped_column(ARRAY(SmallInteger))
    n: Mapped[int]

"""Live counts of each pattern of answers in a project, from which its agreement figures are computed."""

from sqlalchemy import ForeignKey, Index, SmallInteger
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Id


class AgreementTally(Base):
    """A change by n in the number of comparisons that have exactly these answers.

    n > 0: comparisons that now have them; n < 0: comparisons that no longer have them. The sum of n by answers is the
    current count. Triggers on judgment, comparison and user_account write these rows. Rows are only added, so no
    transaction waits for another; one insert in a thousand sums up its project's rows.

    Answers are the live judgments that state a preference, ascending. Each is encoded as 9 * kind + preference + 4,
    where kind is the position of the labeler's kind in USER_KINDS. Withdrawn comparisons and repeats do not count.
    """

    __tablename__ = "agreement_tally"
    __table_args__ = (Index("ix_agreement_tally_project", "project_id"),)

    id: Mapped[Id]
    project_id: Mapped[int] = mapped_column(ForeignKey("project.id"))
    answers: Mapped[list[int]] = mapped_column(ARRAY(SmallInteger))
    n: Mapped[int]

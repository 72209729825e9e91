"""People's verdicts on what a monitor found."""

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Now, one_of

MONITOR_VERDICTS = ("wanted", "fault")


class MonitorReview(Base):
    """A person's verdict on a monitor's look or alarm in a round. A later review replaces an earlier one.

    `wanted` means that people prefer what the monitor found, `fault` that the policy exploits its reward.
    """

    __tablename__ = "monitor_review"
    __table_args__ = (one_of("verdict", MONITOR_VERDICTS),)

    round_id: Mapped[int] = mapped_column(ForeignKey("round.id"), primary_key=True)
    monitor: Mapped[str] = mapped_column(primary_key=True)  # a name of app.domain.monitors
    verdict: Mapped[str]
    note: Mapped[str]
    reviewer_id: Mapped[int] = mapped_column(ForeignKey("user_account.id"))
    reviewed_at: Mapped[Now]

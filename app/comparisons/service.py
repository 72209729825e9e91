"""Doing with many comparisons what a reviewer does with one."""

from typing import NamedTuple

from sqlalchemy.orm import Session

from app.comparisons.forms import BulkForm
from app.errors import Conflict, Forbidden, InvalidInput, NotFound
from app.models import Project, User
from app.review import service as review


class Done(NamedTuple):
    """How many it was done with, and how many were left out because the action does not fit them."""

    n: int
    left_out: int


def act(session: Session, project: Project, admin: User, form: BulkForm) -> Done:
    """Does it with each chosen comparison that allows it, in the order of their ids, and leaves out the rest.

    Raises:
        InvalidInput: none is chosen, or withdrawing lacks a reason.
    """
    ids = sorted(set(form.ids))
    if not ids:
        raise InvalidInput("No comparison is selected.", "Select those that you mean, then try again.")
    if form.do == "withdraw" and not form.note:
        raise InvalidInput("Withdrawing needs a reason.", "Say in the note why nobody should learn from them.")
    n = 0
    for comparison_id in ids:
        try:
            with session.begin_nested():  # what is refused half-way is not done
                _act_on(session, project, admin, comparison_id, form)
        except (Conflict, Forbidden, InvalidInput, NotFound):
            continue
        n += 1
    return Done(n, len(ids) - n)


def _act_on(session: Session, project: Project, admin: User, comparison_id: int, form: BulkForm) -> None:
    if form.do == "withdraw":
        review.withdraw(session, project, admin, comparison_id, note=form.note)
    elif form.do == "request":
        review.request(session, project, admin, comparison_id, note=form.note)
    else:
        review.ask_more(session, project, admin, comparison_id, more=form.more, note=form.note)

"""Accounts with a password, and links on pages."""

import re

from httpx import Response
from sqlalchemy.orm import Session

from app.accounts import service
from app.models import User

PASSWORD = "correct horse battery"


def account(session: Session) -> User:
    user = service.create_user(session, email="Ada@Example.org ", name="Ada", password=PASSWORD)
    session.commit()
    return user


def link_on(page: Response) -> str:
    """Return the address of the link that the page shows."""
    return re.search(r'value="http://[^"]+(/join/[\w-]+)"', page.text)[1]

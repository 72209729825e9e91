"""Limits on guessing passwords. An attempt is counted before its password is checked, so parallel attempts count too.

After some failures, each further attempt has to wait twice as long as the one before. Nobody is locked out: every wait
ends, and limits that also affect strangers have a short longest wait. A browser that has signed in before is counted
separately (a "device cookie" in OWASP's terms), so other people's guesses at an account never make its owner wait.
"""

import hashlib
import hmac
import secrets
from datetime import timedelta
from ipaddress import IPv6Address, ip_address, ip_network
from typing import NamedTuple

from sqlalchemy.orm import Session

from app.accounts import queries
from app.errors import TooMany

BROWSER_COOKIE = "prefloop_browser"  # marks a browser that has signed in here before: see `known_browser`
WINDOW = timedelta(hours=1)  # failures count for this long
FIRST_WAIT = 5  # seconds
BROWSER = "browser "  # prefix of the place of a browser that has signed in to this account before


class Limit(NamedTuple):
    free: int  # failures before the first wait
    longest: int  # longest wait in seconds


OF_BOTH = Limit(free=10, longest=300)  # at one account from one place
OF_ACCOUNT = Limit(free=100, longest=30)  # at one account, from anywhere
OF_PLACE = Limit(free=100, longest=30)  # at any account from one place, which a whole office may share


class MustWait(TooMany):
    """Too many failures; it is too soon for another attempt.

    Attributes:
        seconds: until the next attempt is accepted.
    """

    def __init__(self, seconds: int) -> None:
        in_words = f"{seconds} seconds" if seconds < 120 else f"{-(-seconds // 60)} minutes"
        super().__init__(
            "There were too many sign-ins with a wrong password.",
            f"Wait {in_words}, then try again; or ask an administrator for a password link.",
        )
        self.seconds = seconds


def place_of(address: str, browser: str | None) -> str:
    """Return where an attempt comes from: a known browser, an IPv4 address, or an IPv6 /64 network (one customer's)."""
    if browser:
        return BROWSER + browser
    try:
        found = ip_address(address)
    except ValueError:  # a socket's path, or a test's name
        return address
    return str(ip_network((found, 64), strict=False)) if isinstance(found, IPv6Address) else address


def count(session: Session, email: str, place: str) -> None:
    """Count an attempt as failed until `forget` says otherwise. Commit it before the password is checked.

    Raises:
        MustWait: it comes too soon. It is not counted, and its password must not be checked.
    """
    queries.lock_attempts(session)
    seen = queries.failures(session, email, place, WINDOW)
    limits = [(seen.of_both, OF_BOTH)]
    if not place.startswith(BROWSER):
        limits += [(seen.of_account, OF_ACCOUNT), (seen.of_place, OF_PLACE)]
    left = max(_wait(failed.n, limit) - failed.seconds_ago for failed, limit in limits)
    if left > 0:
        raise MustWait(int(left) + 1)
    queries.add_failure(session, email, place)


def _wait(failures: int, limit: Limit) -> int:
    """Return the seconds between the last failure and the next attempt."""
    beyond = failures - limit.free
    return 0 if beyond < 0 else min(FIRST_WAIT << min(beyond, 16), limit.longest)


def forget(session: Session, email: str, place: str | None = None) -> None:
    """Forget an account's failures from a place (None: from anywhere) after a right password, and all old failures."""
    queries.delete_failures(session, email, place, WINDOW)


def remembrance(key: bytes, email: str) -> str:
    """Return the cookie for a browser that has signed in to an account; it tells nothing else."""
    browser = secrets.token_urlsafe(12)
    return f"{browser}.{_signature(key, email, browser)}"


def known_browser(key: bytes, email: str, cookie: str | None) -> str | None:
    """Return the browser's name, if the cookie proves that it has signed in to this account before."""
    browser, _, signature = (cookie or "").partition(".")
    true = hmac.compare_digest(signature.encode(), _signature(key, email, browser).encode())
    return browser if true else None


def _signature(key: bytes, email: str, browser: str) -> str:
    return hmac.new(key, f"browser:{browser}:{email}".encode(), hashlib.sha256).hexdigest()

"""Logging of a process without secrets: no tokens of links, password hashes, or keys of other services."""

import logging
import re
import sys

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_SECRET = re.compile(r"(?P<what>(?:/|%2[Ff])join(?:/|%2[Ff])|\$argon2\w*\$|[Bb]earer\s+)[\w%.~+/=,$-]+")


def without_secrets(text: str) -> str:
    """Shorten one-time links, password hashes and bearer tokens in a text, so that only their kind can be read."""
    return _SECRET.sub(r"\g<what>…", text)


class Discreet(logging.Formatter):
    """Formats a record and its traceback without secrets, whichever library logged it."""

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


def start_logging(level: int | str) -> None:
    """Send all loggers of this process to stderr. Call it once, when the process starts."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Discreet(FORMAT))
    logging.basicConfig(level=level, handlers=[handler])

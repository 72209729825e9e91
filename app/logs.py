"""The log of a process, and what never gets into it: tokens of links, password hashes, keys of other services."""

import logging
import re
import sys

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_SECRET = re.compile(r"(?P<what>(?:/|%2[Ff])join(?:/|%2[Ff])|\$argon2\w*\$|[Bb]earer\s+)[\w%.~+/=,$-]+")


def without_secrets(text: str) -> str:
    """The text with one-time links, password hashes and bearer tokens cut short: what they are can still be read."""
    return _SECRET.sub(r"\g<what>…", text)


class Discreet(logging.Formatter):
    """Formats a record, its traceback included, without secrets, whoever logged them."""

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


def start_logging(level: int | str) -> None:
    """Sends all loggers of this process to stderr. Call it once, where the process starts."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Discreet(FORMAT))
    logging.basicConfig(level=level, handlers=[handler])

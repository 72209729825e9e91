"""A side of the comparison, and the counts in its database after all labelers have judged."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Engine, text
from sqlalchemy.engine import URL, make_url

from app.db import make_engine, sqlalchemy_url
from app.rows import PairRow
from benchmarks.peer.client import Labeler


class Plan(NamedTuple):
    """The plan for both sides: the same pairs for the same number of labelers, on the same PostgreSQL server.

    Attributes:
        url: address of the server's default database.
        folder: for logs and settings; it is removed when the benchmark ends.
    """

    pairs: Sequence[PairRow]
    labelers: int
    overlap: int
    processes: int
    url: str
    folder: Path


@dataclass
class Side:
    """A running service.

    Attributes:
        over: SQL that counts tasks with more current answers than :overlap.
        stored: SQL that selects those of :ids that the database has as current answers.
        pids: process ids of its web processes.
        statements: numbers of SQL statements by step, if they are counted.
    """

    name: str
    labelers: Sequence[Labeler]
    engine: Engine
    over: str
    stored: str
    pids: Sequence[int] = ()
    statements: dict[str, int] = field(default_factory=dict)

    def over_assigned(self, overlap: int) -> int:
        with self.engine.connect() as connection:
            return int(connection.execute(text(self.over), {"overlap": overlap}).scalar_one())

    def lost(self, acknowledged: Collection[str]) -> int:
        """Return how many acknowledged answers are missing in the database."""
        wanted = set(acknowledged)
        with self.engine.connect() as connection:
            found = connection.execute(text(self.stored), {"ids": list(wanted)}).scalars()
            return len(wanted - {str(each) for each in found})


def new_database(url: str, name: str) -> URL:
    """Create a database on the server; return its address."""
    engine = make_engine(url, pool_size=1)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f'CREATE DATABASE "{name}"'))
    engine.dispose()
    return make_url(sqlalchemy_url(url)).set(drivername="postgresql", database=name)

"""What a side of the comparison is, and what is counted in its database after everybody has judged."""

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
    """What both sides serve: the same pairs to the same number of labelers, on the same PostgreSQL server.

    url: of the server's own database. folder: for logs and settings; it goes with the benchmark.
    """

    pairs: Sequence[PairRow]
    labelers: int
    overlap: int
    processes: int
    url: str
    folder: Path


@dataclass
class Side:
    """A service that is up.

    over: SQL that counts tasks with more live answers than :overlap. stored: SQL for those of :ids that the database
    holds as live answers. pids: of its web processes. statements: SQL statements by step, where they are counted.
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
        """How many acknowledged answers the database does not hold."""
        wanted = set(acknowledged)
        with self.engine.connect() as connection:
            found = connection.execute(text(self.stored), {"ids": list(wanted)}).scalars()
            return len(wanted - {str(each) for each in found})


def new_database(url: str, name: str) -> URL:
    """Make a database on the server; returns its address."""
    engine = make_engine(url, pool_size=1)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f'CREATE DATABASE "{name}"'))
    engine.dispose()
    return make_url(sqlalchemy_url(url)).set(drivername="postgresql", database=name)

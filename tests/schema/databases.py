"""Separate databases on a server that others use too."""

import contextlib
import functools
from collections.abc import Iterator
from uuid import uuid4

from sqlalchemy import Connection, create_engine, make_url, pool, text

from app.db import sqlalchemy_url
from app.schema import migrate


@contextlib.contextmanager
def new_database(server_url: str, revision: str | None = None) -> Iterator[str]:
    """Yield the URL of an empty database, or of one at `revision` ("head": the newest). It is dropped afterwards."""
    name = f"schema_{uuid4().hex[:12]}"
    template = _migrated(server_url, revision) if revision else "template1"
    with connect(server_url) as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}"))
        try:
            yield _url(server_url, name)
        finally:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@functools.cache
def _migrated(server_url: str, revision: str) -> str:
    """Make a database to copy, because migrating takes ten times as long as copying; return its name."""
    name = f"at_{revision}"
    with connect(server_url) as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    migrate(_url(server_url, name), to=revision)
    return name


def _url(server_url: str, name: str) -> str:
    url = make_url(sqlalchemy_url(server_url)).set(drivername="postgresql", database=name)
    return url.render_as_string(hide_password=False)


@contextlib.contextmanager
def connect(url: str) -> Iterator[Connection]:
    """Open a connection on which every statement commits. Times are in UTC."""
    engine = create_engine(sqlalchemy_url(url), poolclass=pool.NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("SET TIME ZONE 'UTC'"))
        yield connection

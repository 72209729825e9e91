"""Databases of their own on a server that others use too."""

import contextlib
from collections.abc import Iterator
from uuid import uuid4

from sqlalchemy import Connection, create_engine, make_url, pool, text

from app.db import sqlalchemy_url


@contextlib.contextmanager
def new_database(server_url: str) -> Iterator[str]:
    """An empty database; yields its URL. It goes with the block."""
    name = f"schema_{uuid4().hex[:12]}"
    with connect(server_url) as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
        try:
            url = make_url(sqlalchemy_url(server_url)).set(drivername="postgresql", database=name)
            yield url.render_as_string(hide_password=False)
        finally:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@contextlib.contextmanager
def connect(url: str) -> Iterator[Connection]:
    """A connection on which every statement commits. Times are told in UTC."""
    engine = create_engine(sqlalchemy_url(url), poolclass=pool.NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("SET TIME ZONE 'UTC'"))
        yield connection

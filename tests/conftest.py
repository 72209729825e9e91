"""What all tests share: a real PostgreSQL built by Alembic, an app on it, people signed in, and a browser.

One embedded server a test process; its tables are emptied after each test that used them. Data comes from factories.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # tests never depend on a hub

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from app.db import make_engine, make_session_factory
from app.models import Base
from app.postgres import database, migrate
from app.settings import Settings


@pytest.fixture(scope="session")
def database_url() -> Iterator[str]:
    # Not tmp_path: a socket's path must stay short.
    with tempfile.TemporaryDirectory(prefix="pf-") as folder:
        settings = Settings(home=Path(folder), database_url=None, _env_file=None)
        with database(settings) as url:
            engine = make_engine(url)
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                # Tests may lose their data with the machine; this halves their time.
                connection.execute(text("ALTER SYSTEM SET fsync = off"))
                connection.execute(text("ALTER SYSTEM SET synchronous_commit = off"))
                connection.execute(text("SELECT pg_reload_conf()"))
            engine.dispose()
            migrate(url)
            yield url


@pytest.fixture(scope="session")
def shared_engine(database_url: str) -> Iterator[Engine]:
    engine = make_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def engine(shared_engine: Engine) -> Iterator[Engine]:
    """The engine for one test; all tables are empty again afterwards."""
    yield shared_engine
    tables = ", ".join(f'"{table.name}"' for table in Base.metadata.sorted_tables)
    with shared_engine.begin() as connection:
        connection.execute(text(f"TRUNCATE {tables}, procrastinate_jobs, procrastinate_workers RESTART IDENTITY CASCADE"))


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    """A session for services and queries. Commit in the test where other sessions must see the data."""
    with make_session_factory(engine)() as session:
        yield session


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    return Settings(home=tmp_path, database_url=database_url, secret_key="test", _env_file=None)

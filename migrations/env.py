"""Alembic's environment: run by `app.postgres.migrate`, or by the `alembic` command with DATABASE_URL set."""

import os

from alembic import context
from sqlalchemy import create_engine, pool, text

from app.db import sqlalchemy_url
from app.models import Base

# procrastinate brings its tables with its own schema file: they are not ours to compare.
OTHERS = ("procrastinate_", "alembic_")


def is_ours(name: str | None, type_: str, _parents: dict[str, str | None]) -> bool:
    return type_ != "table" or not (name or "").startswith(OTHERS)


def run() -> None:
    url = context.config.get_main_option("sqlalchemy.url") or sqlalchemy_url(os.environ["DATABASE_URL"])
    engine = create_engine(url, poolclass=pool.NullPool)
    with engine.connect() as connection:
        # Two services starting at once both migrate; the second waits here and then finds nothing to do.
        connection.execute(text("SELECT pg_advisory_lock(7215001)"))
        connection.commit()
        context.configure(
            connection=connection, target_metadata=Base.metadata, include_name=is_ours, compare_server_default=True
        )
        with context.begin_transaction():
            context.run_migrations()
        connection.execute(text("SELECT pg_advisory_unlock(7215001)"))
        connection.commit()
    engine.dispose()


run()

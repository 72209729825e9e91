"""Alembic's environment, run by `app.schema.migrate`, or by the `alembic` command with DATABASE_URL set."""

import os

from alembic import context
from sqlalchemy import create_engine, pool

from app import schema_queries as queries
from app.db import sqlalchemy_url
from app.models import Base
from app.schema import LOCK_SECONDS, is_ours


def run() -> None:
    url = context.config.get_main_option("sqlalchemy.url") or sqlalchemy_url(os.environ["DATABASE_URL"])
    engine = create_engine(url, poolclass=pool.NullPool, hide_parameters=True)
    with engine.connect() as connection:
        # If two services start at the same time, both migrate: the second waits here and then has nothing to do.
        queries.take_turn(connection)
        queries.limit_waiting(connection, context.config.attributes.get("lock_seconds", LOCK_SECONDS))
        # The queue's tables come first, because our revisions may use them.
        queries.apply_queue_files(connection, queries.queue_files())
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            include_name=is_ours,
            compare_server_default=True,
            # A revision stays applied if a later one fails, and its locks are released when it ends.
            transaction_per_migration=True,
        )
        with context.begin_transaction():
            context.run_migrations()
        queries.end_turn(connection)
    engine.dispose()


run()

"""Engine, sessions, and the one commit site of the web service."""

from collections.abc import Iterator
from typing import Annotated

import psycopg
from fastapi import Depends, Request
from sqlalchemy import Engine, create_engine, event, inspect
from sqlalchemy.engine.interfaces import ExceptionContext
from sqlalchemy.orm import Session, sessionmaker

from app.errors import InvalidInput


def sqlalchemy_url(url: str) -> str:
    """The same URL, naming psycopg 3 as the driver.

    Raises:
        InvalidInput: it is not PostgreSQL's.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in ("postgresql", "postgres", "postgresql+psycopg") or not rest:
        # The address itself is not repeated: it may hold a password.
        raise InvalidInput(
            "DATABASE_URL is not the address of a PostgreSQL.", "Write it as postgresql://user:password@host/name."
        )
    return f"postgresql+psycopg://{rest}"


def make_engine(url: str, *, pool_size: int = 10) -> Engine:
    """An engine that finds out about dropped connections before it uses them. Its errors quote no values."""
    engine = create_engine(
        sqlalchemy_url(url),
        pool_size=pool_size,
        max_overflow=30,
        pool_timeout=10,
        pool_pre_ping=True,
        connect_args={"connect_timeout": 10},
        hide_parameters=True,
    )
    event.listen(engine, "handle_error", _leave_out_values)
    return engine


def _leave_out_values(context: ExceptionContext) -> None:
    """Keeps an error's first line only: PostgreSQL's DETAIL quotes whole rows, password hashes included."""
    error, told = context.original_exception, context.sqlalchemy_exception
    if isinstance(error, psycopg.Error) and error.diag.message_primary:
        whole, first = str(error), error.diag.message_primary
        error.args = (first,)
        if told is not None:
            told.args = tuple(arg.replace(whole, first) if isinstance(arg, str) else arg for arg in told.args)


def make_session_factory(engine: Engine) -> sessionmaker[Session]:
    return sessionmaker(engine, expire_on_commit=False)


def get_session(request: Request) -> Iterator[Session]:
    """One session a request, committed when the route returns and before the response leaves: see `SessionDep`."""
    with request.app.state.session_factory() as session, session.begin():
        try:
            yield session
        except Exception:
            # A rollback expires what was loaded; the error page still shows the signed-in user and the project.
            session.expunge_all()
            for name in ("user", "project"):
                # A failed flush has rolled back, and so expired them, already: that page does without.
                row = getattr(request.state, name, None)
                if row is not None and inspect(row).expired_attributes:
                    setattr(request.state, name, None)
            raise


# scope="function": the commit happens before the response is sent, so a failing commit cannot answer 200.
SessionDep = Annotated[Session, Depends(get_session, scope="function")]

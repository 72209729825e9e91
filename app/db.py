"""Engine, sessions, and the one commit site of the web service."""

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy import Engine, create_engine, inspect
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
    """An engine that finds out about dropped connections before it uses them."""
    return create_engine(
        sqlalchemy_url(url),
        pool_size=pool_size,
        max_overflow=30,
        pool_timeout=10,
        pool_pre_ping=True,
        connect_args={"connect_timeout": 10},
    )


def make_session_factory(engine: Engine) -> sessionmaker[Session]:
    return sessionmaker(engine, expire_on_commit=False)


def get_session(request: Request) -> Iterator[Session]:
    """One session a request, committed when the route returns and before the response leaves: see `SessionDep`."""
    # A form's guards have asked in this session already: app.limits.
    session: Session = getattr(request.state, "session", None) or request.app.state.session_factory()
    session.info["is_taken"] = True  # and closed here
    with session, session.get_transaction() or session.begin():
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

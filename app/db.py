"""Engine, sessions, and the one commit site of the web service."""

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated

import psycopg
from fastapi import Depends, Request
from psycopg.abc import AdaptContext, Buffer
from sqlalchemy import Engine, create_engine, event, inspect
from sqlalchemy.engine.interfaces import ExceptionContext
from sqlalchemy.exc import IntegrityError
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


@contextlib.contextmanager
def one_moment(engine: Engine) -> Iterator[Session]:
    """A session that only reads, in which every statement sees the database as it was at the first one."""
    with Session(engine.execution_options(isolation_level="REPEATABLE READ")) as session:
        yield session


def violates(error: IntegrityError, constraint: str) -> bool:
    """Whether it was this constraint, by its name, that refused: what another one refused is not told in its words."""
    return isinstance(error.orig, psycopg.Error) and error.orig.diag.constraint_name == constraint


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


class _AnyTimestamp(psycopg.adapt.Loader):
    """Reads times that PostgreSQL can hold and Python cannot, before the year 1 and after 9999, as the first or the
    last that Python can hold in every time zone. A page that shows one must not fail for it."""

    FIRST, LAST = datetime(1, 1, 2, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC)

    def __init__(self, oid: int, context: AdaptContext | None = None) -> None:
        super().__init__(oid, context)
        self._usual = _UsualTimestamp(oid, context)

    def load(self, data: Buffer) -> datetime:
        try:
            found: datetime = self._usual.load(data)
        except psycopg.DataError:
            said = bytes(data)
            return self.FIRST if said.endswith(b"BC") or said.startswith(b"-") else self.LAST
        return found if 1 < found.year < 9999 else min(max(found, self.FIRST), self.LAST)


_usual = psycopg.adapters.get_loader(psycopg.adapters.types["timestamptz"].oid, psycopg.pq.Format.TEXT)
assert _usual is not None
_UsualTimestamp = _usual
psycopg.adapters.register_loader("timestamptz", _AnyTimestamp)

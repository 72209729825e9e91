"""Engine, sessions, and the single place where the web service commits."""

import contextlib
from collections.abc import AsyncIterator, Iterable, Iterator
from datetime import UTC, datetime
from typing import Annotated, Any, NamedTuple, TypeVar

import anyio
import anyio.to_thread
import psycopg
from fastapi import Depends, Request
from psycopg.abc import AdaptContext, Buffer
from sqlalchemy import (
    ARRAY,
    BigInteger,
    ClauseElement,
    ColumnElement,
    Engine,
    any_,
    create_engine,
    event,
    inspect,
    literal,
    text,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine.interfaces import ExceptionContext
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from app.errors import InvalidInput

Statement = TypeVar("Statement", bound=ClauseElement)


def among(column: Any, ids: Iterable[int | None]) -> ColumnElement[bool]:
    """Whether a column's value is one of these ids; they are a single parameter, however many there are."""
    return column == any_(literal([*ids], ARRAY(BigInteger)))


def sqlalchemy_url(url: str) -> str:
    """Return the same URL with psycopg 3 as the driver.

    Raises:
        InvalidInput: it is not a PostgreSQL URL.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in ("postgresql", "postgres", "postgresql+psycopg") or not rest:
        # The error does not repeat the URL, which may contain a password.
        raise InvalidInput(
            "DATABASE_URL is not the address of a PostgreSQL.", "Write it as postgresql://user:password@host/name."
        )
    return f"postgresql+psycopg://{rest}"


class Limits(NamedTuple):
    """Time limits that PostgreSQL enforces, in seconds; 0: no limit.

    Attributes:
        statement: for a single statement.
        lock: for waiting for what another transaction holds.
        idle: for a transaction that stays open without a statement; its connection is closed.
    """

    statement: float = 0
    lock: float = 0
    idle: float = 0


def make_engine(url: str, *, pool_size: int = 10, limits: Limits | None = None) -> Engine:
    """Return an engine that detects dropped connections before it uses them. Its errors quote no values.

    Args:
        limits: for every connection; None: the server's own limits.
    """
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
    if limits is not None:
        _set_on_connect(engine, limits)
    return engine


def _set_on_connect(engine: Engine, limits: Limits) -> None:
    """Set limits by statement, not in the connection's options, because the URL may set these too."""
    milliseconds = [str(round(1000 * seconds)) for seconds in limits]

    def set_limits(connection: psycopg.Connection[Any], _record: object) -> None:
        connection.execute(
            "SELECT set_config('statement_timeout', %s, false), set_config('lock_timeout', %s, false),"
            " set_config('idle_in_transaction_session_timeout', %s, false)",
            milliseconds,
        )
        connection.commit()

    event.listen(engine, "connect", set_limits)


def _leave_out_values(context: ExceptionContext) -> None:
    """Keep only an error's first line: PostgreSQL's DETAIL quotes whole rows, including password hashes."""
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
    """Yield a read-only session in which every statement sees the database as it was at the first one."""
    with Session(engine.execution_options(isolation_level="REPEATABLE READ")) as session:
        yield session


def prepared(statement: Statement) -> Statement:
    """Compile a statement once, at import, so that many threads can execute it.

    SQLAlchemy modifies a statement when it first compiles it. Two threads that do so at the same time can break it
    permanently: it then fails, or reads rows without the conditions, until the process ends.
    """
    statement.compile(dialect=postgresql.dialect())
    return statement


def violates(error: IntegrityError, constraint: str) -> bool:
    """Tell whether this constraint, by name, refused the statement. Other constraints need other messages."""
    return isinstance(error.orig, psycopg.Error) and error.orig.diag.constraint_name == constraint


async def get_session(request: Request) -> AsyncIterator[Session]:
    """Yield one session per request, committed when the route returns and before the response is sent: see
    `SessionDep`."""
    # The guards have already used this session: app.limits.
    session: Session = getattr(request.state, "session", None) or request.app.state.session_factory()
    session.info["is_taken"] = True  # it is closed here
    failed = True
    try:
        yield session
        failed = False
    finally:
        with anyio.CancelScope(shield=True):
            # Not in one of the threads that routes share: all of them may be waiting for the connection held here.
            await anyio.to_thread.run_sync(_end, request, session, failed, limiter=anyio.CapacityLimiter(1))


def _end(request: Request, session: Session, failed: bool) -> None:
    with session:
        try:
            if not failed:
                session.commit()
                return
            # A rollback would expire loaded objects, but the error page still shows the user and the project.
            session.expunge_all()
        finally:
            session.rollback()  # also after a failed commit: the connection goes back to the pool
            request.state.session = None  # an error page that used it would keep a connection for good
            for name in ("user", "project"):
                # If a flush or the commit itself failed, they have expired already, and the page leaves them out.
                row = getattr(request.state, name, None)
                if row is not None and inspect(row).expired_attributes:
                    setattr(request.state, name, None)


# scope="function": the commit happens before the response is sent, so a failing commit cannot answer 200.
SessionDep = Annotated[Session, Depends(get_session, scope="function")]


def unhurried(session: SessionDep) -> None:
    """Lift the statement limit for routes that read or write a whole project."""
    session.execute(text("SET LOCAL statement_timeout = 0"))


class _AnyTimestamp(psycopg.adapt.Loader):
    """Reads times beyond Python's range, before year 1 or after 9999, as the first or last time that Python can hold.

    The result is valid in every time zone, so a page that shows it does not fail.
    """

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

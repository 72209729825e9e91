"""Engine, sessions, and the one commit site of the web service."""

import contextlib
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Annotated, Any, NamedTuple, TypeVar

import anyio
import anyio.to_thread
import psycopg
from fastapi import Depends, Request
from psycopg.abc import AdaptContext, Buffer
from sqlalchemy import ClauseElement, Engine, create_engine, event, inspect, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine.interfaces import ExceptionContext
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from app.errors import InvalidInput

Statement = TypeVar("Statement", bound=ClauseElement)


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


class Limits(NamedTuple):
    """What PostgreSQL ends, in seconds; 0: nothing.

    Attributes:
        statement: a statement that takes longer.
        lock: a statement that waits longer for what another transaction holds.
        idle: a connection that holds a transaction open for longer without a statement.
    """

    statement: float = 0
    lock: float = 0
    idle: float = 0


def make_engine(url: str, *, pool_size: int = 10, limits: Limits | None = None) -> Engine:
    """An engine that finds out about dropped connections before it uses them. Its errors quote no values.

    Args:
        limits: of every connection; without them the server's own hold.
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
    """By statement and not in the connection's options, which the URL may name too."""
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


def prepared(statement: Statement) -> Statement:
    """A statement that is put together once, at import, to be executed by many threads.

    Compiled here, because SQLAlchemy adds to a statement when it first compiles it. Two threads that do so at the same
    time can leave it broken for good: it then fails, or reads rows of no condition, until the process ends.
    """
    statement.compile(dialect=postgresql.dialect())
    return statement


def violates(error: IntegrityError, constraint: str) -> bool:
    """Whether it was this constraint, by its name, that refused: what another one refused is not told in its words."""
    return isinstance(error.orig, psycopg.Error) and error.orig.diag.constraint_name == constraint


async def get_session(request: Request) -> AsyncIterator[Session]:
    """One session a request, committed when the route returns and before the response leaves: see `SessionDep`."""
    # The guards have asked in this session already: app.limits.
    session: Session = getattr(request.state, "session", None) or request.app.state.session_factory()
    session.info["is_taken"] = True  # and closed here
    failed = True
    try:
        yield session
        failed = False
    finally:
        with anyio.CancelScope(shield=True):
            # Not one of the threads that routes share: they may all be waiting for the connection held here.
            await anyio.to_thread.run_sync(_end, request, session, failed, limiter=anyio.CapacityLimiter(1))


def _end(request: Request, session: Session, failed: bool) -> None:
    with session:
        try:
            if not failed:
                session.commit()
                return
            # A rollback expires what was loaded; the error page still shows the user and the project.
            session.expunge_all()
        finally:
            session.rollback()  # also of a commit that failed: the connection goes back to the pool
            request.state.session = None  # an error page that asked in it would hold a connection for good
            for name in ("user", "project"):
                # Where a flush or the commit itself has failed, they have expired already: that page does without.
                row = getattr(request.state, name, None)
                if row is not None and inspect(row).expired_attributes:
                    setattr(request.state, name, None)


# scope="function": the commit happens before the response is sent, so a failing commit cannot answer 200.
SessionDep = Annotated[Session, Depends(get_session, scope="function")]


def unhurried(session: SessionDep) -> None:
    """For routes that read or write a whole project: their statements may take as long as they need."""
    session.execute(text("SET LOCAL statement_timeout = 0"))


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

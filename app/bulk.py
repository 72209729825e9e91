"""Whole columns between PostgreSQL and numpy, in its binary formats: no row becomes a Python object.

Every column is a BIGINT or a DOUBLE PRECISION and never NULL, so that all elements have one length.
"""

import contextlib
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from sqlalchemy import BigInteger, Double, Select
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

_SIGNATURE = b"PGCOPY\n\xff\r\n\x00"
_HEADER = _SIGNATURE + struct.pack(">ii", 0, 0)
_TRAILER = struct.pack(">h", -1)
ARRAY_HEADER = 20  # bytes


def read_columns(session: Session, query: Select[*tuple[Any, ...]]) -> dict[str, NDArray[Any]]:
    """The query's columns by their names, int64 or float64 arrays (rows,), in the query's order.

    Columns must be cast to BigInteger or Double and be NOT NULL; the query must hold no % sign.
    """
    session.flush()
    types = {column.name: _code(column.type) for column in query.selected_columns}
    compiled = query.compile(dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True})
    # A column as one value: 20 bytes of header, then each element's length and value (PostgreSQL's array_send).
    sent = ", ".join(f"array_send(array_agg(columns.{name}))" for name in types)
    with _cursor(session, binary=True) as cursor:
        values = cursor.execute(f"SELECT {sent} FROM ({compiled}) AS columns").fetchone()
    assert values is not None, "an aggregate is one row"
    found = {}
    for (name, code), value in zip(types.items(), values, strict=True):
        elements = np.frombuffer((value or b"")[ARRAY_HEADER:], [("length", ">i4"), ("value", f">{code}")])
        found[name] = elements["value"].astype(code)
    return found


def load_columns(session: Session, table: str, columns: dict[str, NDArray[Any]]) -> None:
    """Makes a temporary table of these columns, all of one length; it goes with the transaction.

    Integers become BIGINT, floats DOUBLE PRECISION.
    """
    codes = {name: "i8" if column.dtype.kind in "iu" else "f8" for name, column in columns.items()}
    kinds = ", ".join(f"{name} {'BIGINT' if code == 'i8' else 'DOUBLE PRECISION'}" for name, code in codes.items())
    layout = _layout(codes)
    rows = np.zeros(len(next(iter(columns.values()))), layout)
    rows["fields"] = len(columns)
    for name, column in columns.items():
        rows[f"length of {name}"], rows[name] = 8, column
    with _cursor(session) as cursor:
        cursor.execute(f"DROP TABLE IF EXISTS pg_temp.{table}")
        cursor.execute(f"CREATE TEMPORARY TABLE {table} ({kinds}) ON COMMIT DROP")
        with cursor.copy(f"COPY {table} FROM STDIN (FORMAT BINARY)") as copy:
            copy.write(_HEADER + rows.tobytes() + _TRAILER)
        cursor.execute(f"ANALYZE {table}")


@contextlib.contextmanager
def _cursor(session: Session, *, binary: bool = False) -> Iterator[psycopg.Cursor[Any]]:
    """The driver's own cursor. Its errors become SQLAlchemy's, by which others tell an outage or a lock; they quote no
    values, as those of `app.db.make_engine` do not."""
    connection = session.connection().connection.driver_connection
    assert connection is not None
    try:
        with connection.cursor(binary=binary) as cursor:
            yield cursor
    except psycopg.Error as error:
        error.args = (error.diag.message_primary or str(error),)
        raise DBAPIError.instance(None, None, error, psycopg.Error, hide_parameters=True) from error


def _code(kind: object) -> str:
    if isinstance(kind, BigInteger):
        return "i8"
    if isinstance(kind, Double):
        return "f8"
    raise TypeError(f"A column is of type {kind}; cast it to BigInteger or Double.")


def _layout(codes: dict[str, str]) -> np.dtype[Any]:
    """A row of the binary format: how many fields, then each one's length and value."""
    fields = [field for name, code in codes.items() for field in ((f"length of {name}", ">i4"), (name, f">{code}"))]
    return np.dtype([("fields", ">i2"), *fields])

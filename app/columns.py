"""Transfer of whole columns between PostgreSQL and NumPy in binary formats, so that no row becomes a Python object.

Every column is a BIGINT or a DOUBLE PRECISION and never NULL, so all elements have the same length.
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
    """Return the query's columns by name as int64 or float64 arrays of shape (rows,), in the query's order.

    Columns must be cast to BigInteger or Double and must be NOT NULL. The query must not contain a % sign.
    """
    session.flush()
    types = {column.name: _code(column.type) for column in query.selected_columns}
    compiled = query.compile(dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True})
    # One value per column: 20 bytes of header, then each element's length and value (PostgreSQL's array_send).
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
    """Create a temporary table of these columns, all of the same length; it is dropped when the transaction ends.

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
    """Yield the driver's own cursor, with its errors converted to SQLAlchemy's.

    Callers recognize an outage or a lock by these. Like the errors of `app.db.make_engine`, they quote no values.
    """
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
    """Return the dtype of a row in the binary format: the number of fields, then each field's length and value."""
    fields = [field for name, code in codes.items() for field in ((f"length of {name}", ">i4"), (name, f">{code}"))]
    return np.dtype([("fields", ">i2"), *fields])

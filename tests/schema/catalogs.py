"""A text description of a schema from PostgreSQL's catalogs, for people to read and tests to compare."""

import difflib

from sqlalchemy import Connection, text

# Each query gives (owner, line). The order of columns has no meaning for the code and is left out. NOT NULL is
# described with its column; newer PostgreSQL also lists it as a constraint with a separate name.
COLUMNS = """
    SELECT 'table ' || c.relname, concat_ws(' ',
        'column', quote_ident(a.attname), format_type(a.atttypid, a.atttypmod),
        CASE WHEN a.attnotnull THEN 'not null' END,
        CASE a.attidentity WHEN 'd' THEN 'identity by default' WHEN 'a' THEN 'identity always' END,
        CASE WHEN a.attgenerated <> '' THEN 'generated' WHEN d.oid IS NOT NULL THEN 'default' END,
        pg_get_expr(d.adbin, d.adrelid),
        CASE WHEN a.attcollation <> t.typcollation THEN 'collate ' || a.attcollation::regcollation END)
    FROM pg_class AS c
    JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    JOIN pg_type AS t ON t.oid = a.atttypid
    LEFT JOIN pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum
    WHERE c.relkind IN ('r', 'p') AND c.relnamespace = 'public'::regnamespace
"""
CONSTRAINTS = """
    SELECT 'table ' || c.relname, concat_ws(' ', 'constraint', o.conname, pg_get_constraintdef(o.oid))
    FROM pg_constraint AS o JOIN pg_class AS c ON c.oid = o.conrelid
    WHERE o.contype NOT IN ('n', 't') AND c.relnamespace = 'public'::regnamespace
"""
INDEXES = """
    SELECT 'table ' || c.relname, concat_ws(' ', 'index', pg_get_indexdef(i.indexrelid),
        CASE WHEN NOT i.indisvalid THEN 'INVALID' END)
    FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indrelid
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
"""
TRIGGERS = """
    SELECT 'table ' || c.relname, concat_ws(' ', 'trigger', pg_get_triggerdef(g.oid),
        CASE WHEN g.tgenabled <> 'O' THEN 'fires ' || g.tgenabled::text END)
    FROM pg_trigger AS g JOIN pg_class AS c ON c.oid = g.tgrelid
    WHERE NOT g.tgisinternal AND c.relnamespace = 'public'::regnamespace
"""
TYPES = """
    SELECT 'type ' || t.typname, 'label ' || e.enumlabel
    FROM pg_type AS t JOIN pg_enum AS e ON e.enumtypid = t.oid WHERE t.typnamespace = 'public'::regnamespace
"""
VIEWS = """
    SELECT 'view ' || relname, pg_get_viewdef(oid) FROM pg_class
    WHERE relkind IN ('v', 'm') AND relnamespace = 'public'::regnamespace
"""
FUNCTIONS = """
    SELECT 'function ' || p.proname, pg_get_functiondef(p.oid) FROM pg_proc AS p
    WHERE p.pronamespace = 'public'::regnamespace AND p.prokind IN ('f', 'p')
    AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = p.oid AND deptype = 'e')
"""
TABLE_PARTS = (COLUMNS, CONSTRAINTS, INDEXES)

# Tables of other programs: Alembic's revision, the queue library's tables, and its applied files.
NOT_OURS = ("alembic_", "procrastinate_", "queue_migration")


def describe(connection: Connection, *, triggers: bool = True, queue: bool = False) -> str:
    """Describe everything that migrations make, sorted by name.

    Args:
        triggers: include triggers and functions, which no model describes.
        queue: describe the queue library's part instead of ours.
    """
    found: dict[str, list[str]] = {}
    for query in (*TABLE_PARTS, TYPES, VIEWS, *((TRIGGERS, FUNCTIONS) if triggers else ())):
        for owner, line in connection.execute(text(query)):
            is_queues = owner.split()[1].startswith("procrastinate_")
            if is_queues if queue else not owner.split()[1].startswith(NOT_OURS):
                found.setdefault(owner, []).append(line.replace("\r", ""))
    blocks = [f"{owner}\n" + "\n".join(_indented(line) for line in sorted(lines)) for owner, lines in found.items()]
    return "\n\n".join(sorted(blocks)) + "\n"


def _indented(line: str) -> str:
    return "\n".join(f"    {each}".rstrip() for each in line.strip().splitlines())


def difference(expected: str, found: str) -> str:
    """Return lines that only one description has, `-` for the expected one, with adjacent lines; '' if equal."""
    return "\n".join(difflib.unified_diff(expected.splitlines(), found.splitlines(), "expected", "found", lineterm=""))


def triggers_of(description: str) -> set[str]:
    """Return `table.trigger` for every trigger in a description."""
    found, owner = set(), ""
    for line in description.splitlines():
        words = line.split()
        if line and not line.startswith(" "):
            owner = words[-1]
        elif words[:1] == ["trigger"]:
            found.add(f"{owner}.{words[3]}")  # trigger CREATE TRIGGER name
    return found


def functions_of(description: str) -> set[str]:
    """Return the names of the functions in a description."""
    return {line.split()[1] for line in description.splitlines() if line.startswith("function ")}

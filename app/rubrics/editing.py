"""The buttons of the rubric editor: adding, moving, removing and restoring rows, and choosing a named scale.

They only change what is in the form; nothing is stored.
"""

from typing import NamedTuple

from app.documents import MAX_PRINCIPLES
from app.rubrics.forms import ROW_KINDS, Row, RubricForm, drafted_rows, field_id, is_filled


class Edited(NamedTuple):
    """The form after a button, the section of it that changed, and the id of the element that gets the focus."""

    form: RubricForm
    section: str
    focus: str


def edit(form: RubricForm, action: str) -> Edited:
    """Apply a button of the editor. Unknown actions change nothing.

    action: for example `aspects.add`, `quiz.up.2`, `flags.remove.0`, `flags.restore`, `scale.3.tie` or
        `principles.draft`.
    """
    match action.split("."):
        case ["scale", strengths, tie]:
            scale = form._replace(strengths=strengths, allow_tie=tie == "tie")
            return Edited(scale, "scale", f"scale-{strengths}-{tie}")
        case [kind, "add"] if kind in ROW_KINDS:
            return _insert(form, kind, len(form.rows[kind]), dict.fromkeys(ROW_KINDS[kind].fields, ""))
        case ["principles", "draft"]:
            return _draft(form)
        case [kind, "restore"] if kind in ROW_KINDS and form.removed[kind]:
            return _restore(form, kind)
        case [kind, verb, at] if kind in ROW_KINDS and at in map(str, range(len(form.rows[kind]))):
            return _remove(form, kind, int(at)) if verb == "remove" else _move(form, kind, int(at), verb)
        case _:
            return Edited(form, "", "")


def _with(form: RubricForm, kind: str, rows: list[Row], removed: Row) -> RubricForm:
    return form._replace(rows=form.rows | {kind: rows}, removed=form.removed | {kind: removed})


def _insert(form: RubricForm, kind: str, at: int, row: Row) -> Edited:
    rows = [*form.rows[kind][:at], row, *form.rows[kind][at:]]
    first_field, *_ = ROW_KINDS[kind].fields
    return Edited(_with(form, kind, rows, form.removed[kind]), kind, field_id(kind, at, first_field))


def _draft(form: RubricForm) -> Edited:
    """Add the principles that the rubric's criteria draft and that are not there yet, up to the limit."""
    there = [row for row in form.rows["principles"] if is_filled(row)]
    drafts = drafted_rows(form.guideline, [row["question"] for row in form.rows["aspects"]])
    rows = [*there, *(row for row in drafts if row not in there)][: max(len(there), MAX_PRINCIPLES)]
    return Edited(_with(form, "principles", rows, form.removed["principles"]), "principles", "principles-draft")


def _remove(form: RubricForm, kind: str, at: int) -> Edited:
    """Remove a row. It stays in the page, so a button can restore it until another row is removed."""
    rows = list(form.rows[kind])
    row = rows.pop(at)
    if not is_filled(row):
        return Edited(_with(form, kind, rows, form.removed[kind]), kind, f"{kind}-add")
    return Edited(_with(form, kind, rows, row | {"at": str(at)}), kind, f"{kind}-restore")


def _restore(form: RubricForm, kind: str) -> Edited:
    row = {field: form.removed[kind].get(field, "") for field in ROW_KINDS[kind].fields}
    at, end = form.removed[kind].get("at", ""), len(form.rows[kind])
    place = int(at) if at in map(str, range(end)) else end
    return _insert(form._replace(removed=form.removed | {kind: {}}), kind, place, row)


def _move(form: RubricForm, kind: str, at: int, way: str) -> Edited:
    rows, to = list(form.rows[kind]), at + (1 if way == "down" else -1)
    if way not in ("up", "down") or not 0 <= to < len(rows):
        return Edited(form, kind, "")
    rows[at], rows[to] = rows[to], rows[at]
    # At either end the pressed button disappears, so the focus goes to the other one.
    again = {0: "down", len(rows) - 1: "up"}.get(to, way)
    return Edited(_with(form, kind, rows, form.removed[kind]), kind, f"{kind}-{again}-{to}")

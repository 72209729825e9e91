"""The data page: what the project holds, importing files after a preview, undoing imports, and exporting."""

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Query, Request, Response
from fastapi import Path as FromPath
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile

from app import scratch
from app.access.guards import AdminDep, ProjectDep
from app.datasets import export, full_export, full_import, queries, service, undo, undo_queries
from app.datasets.containers import Bounds
from app.datasets.formats import FORMATS
from app.datasets.forms import ExportQuery, ImportForm
from app.datasets.preview import preview
from app.datasets.reading import ImportFile
from app.datasets.service import ImportOptions, ImportRefused, ImportReport
from app.db import SessionDep
from app.errors import Conflict, Forbidden, InvalidInput
from app.limits import UploadRoute
from app.models import Project, User
from app.render import page, redirect

router = APIRouter(prefix="/projects/{project_slug}/data", route_class=UploadRoute)

WRITERS: dict[str, Callable[..., object]] = {
    "preferences": export.write_preferences,
    "demonstrations": export.write_demonstrations,
    "thumbs": export.write_thumbs,
}
ImportId = Annotated[int, FromPath(ge=0, lt=2**63)]
UNPACKED = 4  # limit on the unpacked size of an upload, as a multiple of the largest upload


async def _sent(request: Request) -> FormData:
    # Already read, within the limits of app.limits.
    return await request.form()


@router.get("")
def data(request: Request, admin: AdminDep, project: ProjectDep, session: SessionDep) -> Response:
    return _page(request, session, project)


@router.post("")
def import_files(
    request: Request,
    admin: AdminDep,
    project: ProjectDep,
    session: SessionDep,
    sent: Annotated[FormData, Depends(_sent)],
) -> Response:
    """Import the uploaded files together; show the result, or every line that was refused.

    The response is a page, not a redirect. Sending the form again by reloading adds nothing twice.
    """
    with _uploaded(request, sent) as (form, files, options):
        if form.previewed and form.previewed != _fingerprint(files, options):
            raise Conflict(
                "The files or the options have changed since the preview.", "Preview them again, then import."
            )
        if full := full_import.only(files, Bounds(options.max_bytes)):
            _require_administrator(admin)
            bounds = Bounds(options.max_bytes)
            made = full_import.restore(session, full, service.no_progress, actor_id=admin.id, bounds=bounds)
            return redirect(f"/projects/{made.project.slug}/data")
        try:
            report = service.import_files(session, project, files, options, actor_id=admin.id)
        except ImportRefused as refused:
            return _page(request, session, project, refused=refused, status=refused.status)
    return _page(request, session, project, report=report)


def _require_administrator(admin: User) -> None:
    if not admin.is_admin:
        raise Forbidden(
            "A full export becomes a new project, and only administrators of the service can make projects.",
            "Ask an administrator, or import prompts, pairs and judgments into this project.",
        )


@router.post("/preview")
def show_preview(
    request: Request,
    admin: AdminDep,
    project: ProjectDep,
    session: SessionDep,
    sent: Annotated[FormData, Depends(_sent)],
) -> Response:
    """Show what an import of these files would do. Nothing is written."""
    with _uploaded(request, sent) as (_, files, options):
        if full := full_import.only(files, Bounds(options.max_bytes)):
            _require_administrator(admin)
            # Import it and roll back, so that a refusal is shown now.
            with session.begin_nested() as trial:
                made = full_import.restore(session, full, service.no_progress, bounds=Bounds(options.max_bytes))
                shown: dict[str, Any] = {"restores": f"{made.project.name}: {made.describe()}"}
                trial.rollback()
        else:
            shown = {"preview": preview(service.plan(session, project, files, options, lock=False))}
        shown |= {
            "previewed": _fingerprint(files, options),
            "skip_invalid": options.skip_invalid,
        }
    if "HX-Request" in request.headers:
        return page(request, "datasets/_preview.html", **shown)
    return _page(request, session, project, **shown)


@router.post("/imports/{import_id}/undo")
def undo_import(
    request: Request,
    admin: AdminDep,
    project: ProjectDep,
    session: SessionDep,
    import_id: ImportId,
    confirmed: Annotated[bool, Form()] = False,
) -> Response:
    """Undo an import. If labelers have judged what it would withdraw, ask first: their work cannot be brought back."""
    if not confirmed and (lost := undo.judged_here(session, project, import_id)):
        return _page(request, session, project, asked_id=import_id, lost=lost)
    undone = undo.undo(session, project, import_id, actor_id=admin.id)
    return _page(request, session, project, undone=undone, undone_id=import_id)


@contextlib.contextmanager
def _uploaded(request: Request, sent: FormData) -> Iterator[tuple[ImportForm, list[ImportFile], ImportOptions]]:
    """Yield the form, its files in a folder that is deleted after the block, and the options."""
    uploads = [value for value in sent.getlist("files") if isinstance(value, UploadFile) and value.filename]
    if not uploads:
        raise InvalidInput("No file was chosen.", "Choose one or more JSONL, JSON, CSV, Parquet or Arrow files.")
    try:
        fields = {name: value for name, value in sent.items() if isinstance(value, str)}
        form = ImportForm.model_validate(fields)
        options = form.options((request.app.state.settings.max_upload_mb << 20) * UNPACKED)
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidInput(f"{first['loc'][0]}: {first['msg']}.", "Correct it and send the form again.") from error
    with scratch.folder() as folder:
        yield form, [_kept(upload, folder / str(n)) for n, upload in enumerate(uploads)], options


def _kept(upload: UploadFile, path: Path) -> ImportFile:
    """Copy the upload to a file, because its stream may be in memory."""
    with path.open("wb") as copy:
        shutil.copyfileobj(upload.file, copy)
    return ImportFile(path, Path(upload.filename or "upload.jsonl").name)


def _fingerprint(files: Sequence[ImportFile], options: ImportOptions) -> str:
    """Return a fingerprint that shows whether files and options are the previewed ones."""
    found = hashlib.sha256(repr((options, [file.name for file in files])).encode())
    for file in files:
        with file.path.open("rb") as content:
            found.update(hashlib.file_digest(content, "sha256").digest())
    return found.hexdigest()


@router.get("/export")
def download(
    admin: AdminDep, project: ProjectDep, session: SessionDep, wanted: Annotated[ExportQuery, Query()]
) -> Response:
    """Download the export in the chosen format and columns."""
    name = f"{project.slug}-{wanted.kind}.jsonl{'.gz' if wanted.gzip else ''}"
    columns = export.parse_columns(wanted.columns)
    full_export.check_options(wanted.kind, wanted.split, columns, wanted.pseudonyms)
    progress = service.no_progress
    write: Callable[[Path], object]
    if wanted.kind == "full":
        write = partial(full_export.write_full, session, project, pseudonyms=wanted.pseudonyms, progress=progress)
    else:
        writer = WRITERS[wanted.kind]
        write = partial(writer, session, project, split=wanted.split, columns=columns, progress=progress)
    return scratch.download(name, "application/gzip" if wanted.gzip else "application/jsonl", write)


def _page(request: Request, session: SessionDep, project: Project, *, status: int = 200, **shown: Any) -> Response:
    """Show the data page. shown: the results to report, such as report, refused, preview or undone."""
    names = "report refused preview restores previewed skip_invalid asked_id lost undone undone_id".split()
    given = dict.fromkeys(names) | shown
    refused: ImportRefused | None = given["refused"]
    report: ImportReport | None = given["report"]
    return page(
        request,
        "datasets/page.html",
        status=status,
        holdings=queries.holdings(session, project.id),
        formats=FORMATS,
        columns=export.COLUMNS,
        limit_mb=request.app.state.settings.max_upload_mb,
        problems=refused.problems if refused else report.skipped if report else None,
        imports=undo_queries.recent(session, project.id),
        **given,
    )

"""The data page: what the project holds, importing files and downloading the export."""

import contextlib
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import FileResponse
from pydantic import ValidationError
from starlette.background import BackgroundTask
from starlette.datastructures import FormData, UploadFile

from app.accounts.access import AdminDep
from app.datasets import export, queries, service
from app.datasets.formats import FORMATS
from app.datasets.forms import ExportQuery, ImportForm
from app.datasets.reading import ImportFile
from app.datasets.service import ImportRefused, ImportReport
from app.db import SessionDep
from app.errors import InvalidInput
from app.limits import UploadRoute
from app.models import Project
from app.projects.access import ProjectDep
from app.render import page

router = APIRouter(prefix="/projects/{project_slug}/data", route_class=UploadRoute)


async def _sent(request: Request) -> FormData:
    # Read by now, within the limits of app.limits.
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
    """Imports the uploaded files together; shows what came of it, or every line that was refused.

    The answer is a page and no redirect: sending the form again by a reload adds nothing twice.
    """
    uploads = [value for value in sent.getlist("files") if isinstance(value, UploadFile) and value.filename]
    if not uploads:
        raise InvalidInput("No file was chosen.", "Choose one or more JSONL files, gzipped or not.")
    try:
        fields = {name: value for name, value in sent.items() if isinstance(value, str)}
        options = ImportForm.model_validate(fields).options()
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidInput(f"{first['loc'][0]}: {first['msg']}.", "Correct it and send the form again.") from error
    with tempfile.TemporaryDirectory(prefix="prefloop-import-") as folder:
        files = [_kept(upload, Path(folder) / str(n)) for n, upload in enumerate(uploads)]
        try:
            report = service.import_files(session, project, files, options, actor_id=admin.id)
        except ImportRefused as refused:
            return _page(request, session, project, refused=refused, status=refused.status)
    return _page(request, session, project, report=report)


def _kept(upload: UploadFile, path: Path) -> ImportFile:
    """A file of its own for the upload, whose stream may be in memory."""
    with path.open("wb") as copy:
        shutil.copyfileobj(upload.file, copy)
    return ImportFile(path, Path(upload.filename or "upload.jsonl").name)


@router.get("/export")
def download(
    admin: AdminDep, project: ProjectDep, session: SessionDep, wanted: Annotated[ExportQuery, Query()]
) -> Response:
    """The file, made first and then sent, so that an error is never half a file."""
    name = f"{project.slug}-{wanted.kind}.jsonl{'.gz' if wanted.gzip else ''}"
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="prefloop-export-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        columns = export.parse_columns(wanted.columns)
        write = export.write_demonstrations if wanted.kind == "demonstrations" else export.write_preferences
        write(session, project, folder / name, split=wanted.split, columns=columns, progress=service.no_progress)
        kept_until_sent = stack.pop_all()
    kind = "application/gzip" if wanted.gzip else "application/jsonl"
    background = BackgroundTask(kept_until_sent.close)
    return FileResponse(folder / name, filename=name, media_type=kind, background=background)


def _page(
    request: Request,
    session: SessionDep,
    project: Project,
    *,
    report: ImportReport | None = None,
    refused: ImportRefused | None = None,
    status: int = 200,
) -> Response:
    problems: Sequence[object] = refused.problems if refused else report.skipped if report else ()
    return page(
        request,
        "datasets/page.html",
        status=status,
        holdings=queries.holdings(session, project.id),
        formats=FORMATS,
        columns=export.COLUMNS,
        limit_mb=request.app.state.settings.max_upload_mb,
        report=report,
        refused=refused,
        problems=problems,
    )

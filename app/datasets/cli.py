"""`prefloop import` and `prefloop export`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from app.datasets import export, full_export, full_import, queries, service
from app.datasets.formats import FORMATS
from app.datasets.reading import ImportFile, find_files
from app.datasets.reading import Progress as Report
from app.datasets.service import ImportOptions, ImportReport
from app.errors import InvalidInput, NotFound
from app.postgres import command_session
from app.settings import Settings

FORMAT_HELP = "One of: " + "; ".join(f"{name} ({format_.about})" for name, format_ in FORMATS.items())


def import_command(
    paths: Annotated[list[Path], typer.Argument(help="JSONL or JSONL.gz files, or folders of them.")],
    project: Annotated[str, typer.Option(help="Address of the project; made when there is none.")],
    name: Annotated[str | None, typer.Option(help="Name of a project that is made.")] = None,
    format_: Annotated[
        str | None, typer.Option("--format", "--kind", help=f"Else found from the keys. {FORMAT_HELP}.")
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="Name for labelers and responses the lines give none. Else the file's name.")
    ] = None,
    heldout_share: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of prompts (or topics) never trained on, by a hash.")
    ] = None,
    split_by: Annotated[
        Literal["prompt", "topic"], typer.Option(help="Hold out single prompts or whole topics (then 0.2 unless said).")
    ] = "prompt",
    skip_invalid: Annotated[bool, typer.Option(help="Import the good lines and list the bad ones.")] = False,
) -> None:
    """Bring prompts, pairs, judgments and demonstrations into a project. Running it again adds nothing twice.

    Formats and fields are described in docs/import.md. A bad line is named with its number and reason, and then nothing
    is written, unless --skip-invalid is given.
    """
    if format_ is not None and format_ not in FORMATS:
        raise InvalidInput(f"There is no format {format_}.", f"Formats are: {', '.join(FORMATS)}.")
    share = heldout_share if heldout_share is not None else (0.2 if split_by == "topic" else 0.0)
    options = ImportOptions(format_, source, skip_invalid, share, split_by)
    files = find_files(paths)
    if any(full_import.is_full(file) for file in files):
        _restore(files, project)
        return
    with command_session(Settings()) as session, _bars() as progress:
        target = service.project_for_import(session, project, name, actor_id=None)
        report = service.import_files(session, target, files, options, progress=progress)
    _show(report, project)


def _restore(files: list[ImportFile], slug: str) -> None:
    if len(files) > 1:
        raise InvalidInput("A full export makes a project of its own.", "Import it alone, under a new address.")
    with command_session(Settings()) as session, _bars() as progress:
        restored = full_import.restore(session, files[0], progress, slug=slug)
    lines = ", ".join(f"{n:,} {kind}" for kind, n in restored.counts.items())
    Console().print(f"Made the project {slug} of a full export: {lines}.", soft_wrap=True)


def export_command(
    project: Annotated[str, typer.Option(help="Address of the project.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, .jsonl or .jsonl.gz.")],
    kind: Annotated[
        export.Kind, typer.Option(help="What to write; `full` is the whole project, to be imported again.")
    ] = "preferences",
    split: Annotated[Literal["all", "train", "heldout"], typer.Option(help="On which prompts.")] = "all",
    columns: Annotated[
        str, typer.Option(help=f"Further columns, separated by commas: {', '.join(export.COLUMNS)}, or all.")
    ] = "",
    pseudonyms: Annotated[bool, typer.Option(help="In a full export: numbers instead of labelers' names.")] = False,
) -> None:
    """Write what people decided in the formats that TRL's trainers read, or the whole project.

    Comparisons become prompt, chosen and rejected; demonstrations prompt and completion; thumbs a label besides.
    """
    wanted = export.parse_columns(columns)
    full_export.check_options(kind, split, wanted, pseudonyms)
    with command_session(Settings()) as session, _bars() as progress:
        target = queries.project_by_slug(session, project)
        if target is None:
            raise NotFound(f"There is no project {project}.", "Its address is the last part of the project page's URL.")
        if kind == "full":
            written = full_export.write_full(session, target, output, pseudonyms=pseudonyms, progress=progress)
            done = ", ".join(f"{n:,} {each}" for each, n in written.items()) + "."
        elif kind == "thumbs":
            thumbs = export.write_thumbs(session, target, output, split=split, columns=wanted, progress=progress)
            done = thumbs.describe()
        elif kind == "demonstrations":
            n = export.write_demonstrations(session, target, output, split=split, columns=wanted, progress=progress)
            done = f"{n:,} demonstrations."
        else:
            counts = export.write_preferences(session, target, output, split=split, columns=wanted, progress=progress)
            done = counts.describe()
    Console().print(f"{done} Written to {output}.", soft_wrap=True)


@contextmanager
def _bars() -> Iterator[Report]:
    """A progress bar for each stage."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield show


def _show(report: ImportReport, project: str) -> None:
    console = Console(soft_wrap=True, highlight=False, markup=False)
    for file in report.files:
        console.print(f"{file.name}: {len(file.records) + len(file.problems):,} lines, format {file.format}")
    for what in ("prompts", "comparisons", "judgments", "demonstrations", "thumbs"):
        console.print(f"{what}: {report.added[what]:,} added, {report.present[what]:,} were there already")
    console.print(f"labelers: {report.added['labelers']:,} new; held-out prompts in {project}: {report.heldout:,}")
    states = ", ".join(f"{n:,} {state.replace('_', ' ')}" for state, n in sorted(report.states.items()))
    console.print(f"comparisons of {project} now: {states or 'none'}")
    if report.demonstrations:
        states = ", ".join(f"{n:,} {state}" for state, n in sorted(report.demonstrations.items()))
        console.print(f"demonstrations of {project} now: {states}")
    for note in report.notes:
        console.print(note)
    if report.skipped:
        console.print(f"{len(report.skipped):,} lines were skipped:")
        for problem in report.skipped:
            console.print(f"  {problem}")

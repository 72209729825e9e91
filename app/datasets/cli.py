"""`prefloop import`, `prefloop undo-import` and `prefloop export`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from sqlalchemy.orm import Session

from app.datasets import export, full_export, full_import, queries, service, undo
from app.datasets.formats import FORMATS
from app.datasets.preview import Preview, preview
from app.datasets.reading import ImportFile, Problems, find_files, place
from app.datasets.reading import Progress as Report
from app.datasets.service import ImportOptions, ImportReport, Plan
from app.errors import Conflict, InvalidInput, NotFound
from app.models import Project
from app.postgres import command_session
from app.settings import Settings

WHAT = ("prompts", "comparisons", "judgments", "demonstrations", "thumbs")
FORMAT_HELP = "One of: " + "; ".join(f"{name} ({format_.about})" for name, format_ in FORMATS.items())


def import_command(
    paths: Annotated[list[Path], typer.Argument(help="JSONL, JSON, CSV, Parquet or Arrow files, or folders of them.")],
    project: Annotated[str, typer.Option(help="Address of the project; it is made if it does not exist.")],
    name: Annotated[str | None, typer.Option(help="Name of the project if it is made.")] = None,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format", "--kind", help=f"Format of the files. Default: detected from the keys. {FORMAT_HELP}."
        ),
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="Name of labelers and responses if a line gives none. Default: the file's name.")
    ] = None,
    heldout_share: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of prompts (or topics) to hold out from training, chosen by a hash."),
    ] = None,
    split_by: Annotated[
        Literal["prompt", "topic"],
        typer.Option(help="Hold out single prompts or whole topics. With topics, the default share is 0.2."),
    ] = "prompt",
    skip_invalid: Annotated[bool, typer.Option(help="Import the valid lines and list the invalid ones.")] = False,
    ai_judge: Annotated[bool, typer.Option(help="An AI judge gave the judgments in these files.")] = False,
    only_preview: Annotated[
        bool, typer.Option("--preview", help="Show what the import would do without writing anything.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Import without asking for confirmation after the preview.")
    ] = False,
) -> None:
    """Bring prompts, pairs, judgments and demonstrations into a project. Running it again adds nothing twice.

    Formats and fields are described in docs/import.md. A preview comes first; at a terminal you are asked whether to go
    on. A bad line is named with its number and reason, and then nothing is written, unless --skip-invalid is given.
    """
    if format_ is not None and format_ not in FORMATS:
        raise InvalidInput(f"There is no format {format_}.", f"Formats are: {', '.join(FORMATS)}.")
    share = heldout_share if heldout_share is not None else (0.2 if split_by == "topic" else 0.0)
    options = ImportOptions(format_, source, skip_invalid, share, split_by, ai_judge)
    files = find_files(paths)
    asks = is_terminal() and not yes
    if full := full_import.only(files):
        _restore(full, project, only_preview=only_preview, asks=asks)
        return
    if only_preview or asks:
        # In a separate transaction, so that nothing waits for the person who reads the preview.
        with command_session(Settings()) as session:
            target = service.project_for_import(session, project, name, actor_id=None)
            stops = _planned(session, target, files, options, show=True).stops(options)
            session.rollback()
        if only_preview or (not stops and not typer.confirm("Import this?")):
            typer.echo("Nothing was written.")
            return
    with command_session(Settings()) as session:
        target = service.project_for_import(session, project, name, actor_id=None)
        planned = _planned(session, target, files, options, show=not asks)
        with _bars() as progress:
            report = service.carry_out(session, target, planned, options, progress=progress)
    _show(report, project)


def _restore(file: ImportFile, slug: str, *, only_preview: bool, asks: bool) -> None:
    console = Console(soft_wrap=True, highlight=False)
    if only_preview or asks:
        with command_session(Settings()) as session, _bars() as progress:
            found = full_import.restore(session, file, progress, slug=slug).describe()
            session.rollback()
        console.print(f"{file.name} is a full export. It makes the project {slug}, new: {found}.")
        if only_preview or not typer.confirm("Import this?"):
            typer.echo("Nothing was written.")
            return
    with command_session(Settings()) as session, _bars() as progress:
        restored = full_import.restore(session, file, progress, slug=slug)
    console.print(f"Made the project {slug} of a full export: {restored.describe()}.")


def is_terminal() -> bool:
    """Tell whether a person is there to answer."""
    return sys.stdin.isatty()


def _planned(session: Session, target: Project, files: list[ImportFile], options: ImportOptions, *, show: bool) -> Plan:
    """Return the plan of an import, and show it if `show` is set."""
    with _bars() as progress:
        planned = service.plan(session, target, files, options, progress=progress)
    if show:
        _show_preview(preview(planned))
    return planned


def undo_command(
    number: Annotated[
        int, typer.Argument(help="Number of the import: the import printed it, and the Data page lists it.")
    ],
    project: Annotated[str, typer.Option(help="Address of the project.")],
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Undo even if labelers have judged what the import added.")
    ] = False,
) -> None:
    """Withdraw what an import added. Nothing is deleted, and the files can be imported again."""
    with command_session(Settings()) as session:
        target = _project(session, project)
        if not yes and (lost := undo.judged_here(session, target, number)):
            raise Conflict(
                f"Judgments given here on the comparisons of import {number}: {lost:,}. They would no longer count, "
                f"and "
                "another import does not restore them.",
                "Add --yes to undo the import anyway.",
            )
        done = undo.undo(session, target, number)
    Console().print(f"Import {number} was undone. {done.describe()}", soft_wrap=True, highlight=False)


def export_command(
    project: Annotated[str, typer.Option(help="Address of the project.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, .jsonl or .jsonl.gz.")],
    kind: Annotated[
        export.Kind, typer.Option(help="What to export; `full` is the whole project, which can be imported again.")
    ] = "preferences",
    split: Annotated[Literal["all", "train", "heldout"], typer.Option(help="Prompts to export from.")] = "all",
    columns: Annotated[
        str, typer.Option(help=f"Additional columns, separated by commas: {', '.join(export.COLUMNS)}, or all.")
    ] = "",
    pseudonyms: Annotated[bool, typer.Option(help="In a full export, replace labelers' names with numbers.")] = False,
) -> None:
    """Write what people decided in the formats that TRL's trainers read, or the whole project.

    Comparisons become prompt, chosen and rejected; demonstrations prompt and completion; thumbs a label besides.
    """
    wanted = export.parse_columns(columns)
    full_export.check_options(kind, split, wanted, pseudonyms)
    with command_session(Settings()) as session, _bars() as progress:
        target = _project(session, project)
        if kind == "full":
            written = full_export.write_full(session, target, output, pseudonyms=pseudonyms, progress=progress)
            done = ", ".join(f"{n:,} {each if n == 1 else f'{each}s'}" for each, n in written.items()) + "."
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


def _project(session: Session, slug: str) -> Project:
    found = queries.project_by_slug(session, slug)
    if found is None:
        raise NotFound(f"There is no project {slug}.", "Its address is the last part of the project page's URL.")
    return found


@contextmanager
def _bars() -> Iterator[Report]:
    """Show a progress bar for each stage."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield show


def _show_preview(shown: Preview) -> None:
    console = Console(soft_wrap=True, highlight=False, markup=False)
    for file in shown.files:
        console.print(f"{file.name}: {file.lines:,} lines, format {file.format}. Its first lines:")
        for row in file.rows:
            console.print(
                f"  {place(file.name, row.line)}: {f'Refused: {row.refused}' if row.refused else row.becomes}"
            )
            for name, text in row.texts:
                console.print(f"    {name}: {text!r}")  # no control character may reach the terminal
    adds = ", ".join(f"{n:,} {what if n != 1 else what[:-1]}" for what in WHAT for n in (shown.adds[what],))
    refused = len(shown.problems)
    console.print(f"New: {adds}. Refused: {refused:,} line{'' if refused == 1 else 's'}.")
    _show_problems(console, shown.problems)
    for note in shown.notes:
        console.print(note)


def _show_problems(console: Console, problems: Problems) -> None:
    for problem in problems:
        console.print(f"  {problem}")
    if more := len(problems) - len(problems.kept):
        console.print(f"  and {more:,} more")


def _show(report: ImportReport, project: str) -> None:
    console = Console(soft_wrap=True, highlight=False, markup=False)
    for file in report.files:
        console.print(f"{file.name}: {file.lines:,} lines, format {file.format}")
    for what in WHAT:
        console.print(f"{what}: {report.added[what]:,} added, {report.present[what]:,} were already there")
    console.print(f"labelers: {report.added['labelers']:,} new; held-out prompts in {project}: {report.heldout:,}")
    states = ", ".join(f"{n:,} {state.replace('_', ' ')}" for state, n in sorted(report.states.items()))
    console.print(f"comparisons of {project} now: {states or 'none'}")
    if report.demonstrations:
        states = ", ".join(f"{n:,} {state}" for state, n in sorted(report.demonstrations.items()))
        console.print(f"demonstrations of {project} now: {states}")
    if report.skipped:
        console.print(f"{len(report.skipped):,} lines were skipped:")
        _show_problems(console, report.skipped)
    if report.import_id is not None:
        undo_by = f"prefloop undo-import {report.import_id} --project {project}"
        console.print(f"This was import {report.import_id}. To undo it: {undo_by}")

"""`prefloop model`: export a model with its signed manifest, and verify an exported one."""

import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from app.artifacts import ArtifactStore, digest_folder
from app.errors import Conflict, NotFound
from app.lineage import manifest, queries
from app.postgres import command_session
from app.projects import queries as projects
from app.render import counted
from app.settings import Settings

model_app = typer.Typer(no_args_is_help=True, help="Models: export with a signed manifest, and verify.")


@model_app.command()
def export(
    name: Annotated[str, typer.Argument(help="the model's name, such as policy-3")],
    output: Annotated[Path, typer.Argument(help="a folder that does not exist yet")],
    project: Annotated[str, typer.Option("--project", "-p", help="the project's address (slug)")],
) -> None:
    """Copy a model's files to a folder, with a manifest of where it comes from, signed by this instance.

    A policy that is an adapter is exported as the adapter alone. The manifest names its base model.
    """
    settings = Settings()
    if output.exists():
        raise Conflict(f"{output} already exists.", "Name a folder that does not exist yet.")
    with command_session(settings) as session:
        found = projects.by_slug(session, project)
        model = queries.by_name(session, found.id, name) if found else None
        if model is None:
            raise NotFound(f"There is no model {name} in a project {project}.", "The Models page lists all models.")
        store = ArtifactStore(settings.artifacts_root, settings.outside_models)
        said = manifest.contents(session, model) | {"base": model.base if model.adapter else None}
        source = store.resolve(model.adapter or model.base)
    output.parent.mkdir(parents=True, exist_ok=True)
    # In a folder of a name that nobody has chosen: nothing of anybody's is removed.
    with tempfile.TemporaryDirectory(prefix=".prefloop-export-", dir=output.parent) as staging:
        copy = Path(staging) / output.name
        shutil.copytree(source, copy)
        if model.digest is not None and digest_folder(copy) != model.digest:
            raise Conflict(
                f"The files of {name} are not those that its run made: they were changed or replaced.",
                "Restore them from a backup of the artifacts. Nothing was signed.",
            )
        manifest.write(copy, said, manifest.key_of(settings.signing_key))
        copy.rename(output)
    typer.echo(f"{name} lies in {output}. Check it with `prefloop model verify {output}`.")


@model_app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="the folder of an exported model")],
    key: Annotated[str | None, typer.Option(help="the public key that must have signed it")] = None,
) -> None:
    """Check an exported model: that its files are those that were signed, and that nobody changed the manifest."""
    found = manifest.verify(folder, key)
    files = counted(len(found.files), "file")
    typer.echo(f"{manifest.printable(found.model.name)}: {files}, as signed by {found.signed_by}.")
    if learned := found.learned_from:
        kinds = ("judgment", learned.judgments), ("demonstration", learned.demonstrations), ("thumb", learned.thumbs)
        read = ", ".join(counted(n, kind) for kind, n in kinds if n) or "nothing"
        people = counted(len(learned.people), "person", "people")
        typer.echo(f"It learned from {read} of {people}, frozen as {manifest.printable(learned.snapshot[:16])}.")
        if learned.ai_judges:
            named = ", ".join(f"{manifest.printable(name)} ({n:,})" for name, n in learned.ai_judges.items())
            typer.echo(f"It also learned from comparisons that only AI judges judged: {named}.")
        marked = learned.ai_revised.model_dump()
        if told := ", ".join(counted(n, kind.removesuffix("s")) for kind, n in marked.items() if n):
            typer.echo(f"Of these, {told} show texts that an AI critic wrote.")
    if key is None:
        typer.echo("Compare the key with the one that `prefloop model key` shows where the model was made.")


@model_app.command("key")
def show_key() -> None:
    """Show the public key with which this instance signs manifests."""
    typer.echo(manifest.public_key(manifest.key_of(Settings().signing_key)))

"""Projects: creating one, and its settings."""

import re
from pathlib import Path
from typing import Any

from anyascii import anyascii
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.access import members
from app.artifacts import ArtifactStore
from app.audit import audit
from app.db import violates
from app.documents import DEFAULT_ASPECTS, LabelingSettings, Principle, RubricContent
from app.errors import Conflict, InvalidInput
from app.labelers import service as labelers
from app.labeling import settling
from app.labeling.settling_queries import Moves
from app.models import Project
from app.projects import queries
from app.projects.forms import SettingsForm
from app.rounds import service as rounds
from app.rubrics import service as rubrics
from app.rubrics.principles import drafted
from app.specs import Generation

FIRST_GUIDELINE = """\
Prefer the response that is more helpful and correct, follows the instruction, and is honest and safe.

Shorter is better when nothing is lost. Use a tie only when you truly cannot choose.
"""
# Measured (docs/learning.md): one in five judged by several is enough to see how far people agree.
NEW_PROJECTS_LABELING = LabelingSettings(judged_once=0.8).model_dump(mode="json", exclude_defaults=True)


MAX_ADDRESS = 60
_ADDRESS = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")  # as the table takes it


def slugify(name: str) -> str:
    """`My Project!` -> `my-project`, `Оценка` -> `otsenka`; empty when there is no letter or digit of any script."""
    return re.sub(r"[^a-z0-9]+", "-", anyascii(name).lower()).strip("-")[:MAX_ADDRESS].strip("-")


def _check_address(address: str) -> None:
    if len(address) > MAX_ADDRESS or not _ADDRESS.fullmatch(address):
        like = slugify(address)
        raise InvalidInput(
            f"“{address[:80]}” cannot be a project's address.",
            f"An address has the letters a-z, digits, and single hyphens between them, at most {MAX_ADDRESS} "
            + (f"characters: for example {like}." if like else "characters."),
        )


def create(
    session: Session,
    *,
    name: str,
    actor_id: int | None,
    description: str = "",
    slug: str | None = None,
    guideline: str = FIRST_GUIDELINE,
    generation: Generation | None = None,
) -> Project:
    """Adds a project with a first published rubric and first members, ready to hold comparisons.

    Raises:
        InvalidInput: the name gives no address, or the address given is not one.
        Conflict: the address is taken.
    """
    if slug is None and not (slug := slugify(name)):
        raise InvalidInput("The name cannot be made into an address.", "Use at least one letter or digit.")
    _check_address(slug)
    project = Project(
        slug=slug,
        name=name.strip(),
        description=description,
        generation=(generation or Generation()).model_dump(),
        labeling=NEW_PROJECTS_LABELING,
    )
    try:
        with session.begin_nested():  # the constraint decides also between two who come at once
            session.add(project)
            session.flush()
    except IntegrityError as error:
        if not violates(error, "uq_project_slug"):
            raise
        raise Conflict(f"A project with the address “{slug}” exists.", "Choose another name.") from error
    drafts = drafted(guideline, [aspect.question for aspect in DEFAULT_ASPECTS])
    principles = tuple(Principle(text=text) for text in drafts)
    rubrics.create_first(session, project, RubricContent(guideline=guideline, principles=principles), actor_id)
    audit(session, actor_id, "project.created", project.id, name=project.name)
    members.first_members(session, project, actor_id)
    return project


def use_model(session: Session, store: ArtifactStore, project: Project, model: str, actor_id: int) -> None:
    """Gives a project its base model: a location in the store, an absolute folder, or a hub name. Until a run has used
    it, another can take its place.

    Raises:
        InvalidInput: nothing is named, or what models are not read from; also what a run of a project made whose models
            the actor may not look at. All projects share one store, and its locations are easily guessed.
            It is a folder that holds no model, as far as the web service can see.
        Conflict: the project has one that is in use; its rounds and samples refer to it. Or a round has begun with it.
    """
    model = model.strip()
    if not model:
        raise InvalidInput("No model is named.", "Give the name of one on the hub, or the path of a folder.")
    if ":" in model or not store.allows(model) or not _may_read(session, store, model, actor_id):
        raise InvalidInput(
            "Models are not read from there.",
            "Name one on the hub, a model of a project of yours, or an absolute path below PREFLOOP_MODEL_FOLDERS.",
        )
    if _holds_no_model(model):
        raise InvalidInput(
            f"There is no model in {model}.", "Give the path of the folder that holds the model's config.json."
        )
    session.refresh(project, with_for_update={"key_share": True})
    if project.base_model_id is not None and queries.has_used_model(session, project.id):
        raise Conflict(
            "The project's base model is in use already.", "Make another project to begin from another model."
        )
    if rounds.is_busy(session, project):
        raise Conflict(
            "A round is under way and began with the project's model.", "Cancel the round, or wait until it has ended."
        )
    rounds.adopt_base_model(session, project, model, model.rstrip("/").rpartition("/")[2])
    audit(session, actor_id, "project.model_chosen", project.id, model=model)


def _holds_no_model(model: str) -> bool:
    """Whether it is a folder without a model. What lies where the web service sees nothing, the worker may see."""
    folder = Path(model)
    return folder.is_absolute() and folder.parent.is_dir() and not (folder / "config.json").is_file()


def _may_read(session: Session, store: ArtifactStore, location: str, actor_id: int) -> bool:
    run_id = store.run_of(location)
    return run_id is None or queries.may_read_run(session, actor_id, run_id)


def update_labeling(session: Session, project: Project, wanted: LabelingSettings, actor_id: int) -> None:
    """Changes what the project wants of its judgments. Comparisons that are open keep the overlap they were opened
    with; another method of consensus is applied to all that are decided."""
    before = LabelingSettings.model_validate(project.labeling)
    old, new = before.model_dump(mode="json"), wanted.model_dump(mode="json")
    changed = {name: new[name] for name in new if new[name] != old[name]}
    if not changed:
        return
    project.labeling = new
    audit(session, actor_id, "project.labeling_changed", project.id, **changed)
    session.flush()
    if wanted.consensus != before.consensus:
        labelers.refit(session, project)


def moved_by(session: Session, project: Project, form: SettingsForm) -> Moves | None:
    """What the form's review threshold would do to decided comparisons, unless that was shown; none: nothing."""
    if form.review_threshold in (project.review_threshold, form.shown_threshold):
        return None
    moves = settling.moves(session, project, form.review_threshold)
    return moves if any(moves) else None


def update(session: Session, project: Project, form: SettingsForm, actor_id: int) -> None:
    """Changes the settings. Comparisons that are open already keep the overlap they were opened with; another review
    threshold settles, or sends to review, those that the one before had decided."""
    project.name = form.name
    project.description = form.description
    project.overlap = form.overlap
    project.lease_minutes = form.lease_minutes
    sampling = form.model_dump(include={"samples_per_prompt", "max_new_tokens", "temperature"})
    project.generation = Generation.model_validate(project.generation | sampling).model_dump()
    details: dict[str, Any] = form.model_dump(exclude={"shown_threshold"})
    if form.review_threshold != project.review_threshold:
        details["moved"] = settling.use_threshold(session, project, form.review_threshold)._asdict()
    audit(session, actor_id, "project.settings_changed", project.id, **details)

"""Prompts by hand: typing one, changing it while nothing depends on it, retiring it. All of it is audited."""

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.audit import audit
from app.db import violates
from app.errors import Conflict, InvalidInput, NotFound
from app.models import Project, Prompt, User
from app.models.prompt import SPLITS, WITHDRAWN
from app.prompts import queries, service
from app.prompts.forms import PromptForm, TagsForm

SOURCE = "typed"
_TAKEN = Conflict("The project has this prompt already.", "Change its text, or search the list for it.")


def write(session: Session, project: Project, admin: User, form: PromptForm) -> Prompt:
    """Adds a prompt.

    Raises:
        InvalidInput: its text is empty.
        Conflict: the project has it.
    """
    _require_text(form)
    new = service.NewPrompt(
        form.messages, form.split, form.domain, form.difficulty, form.safety_category or None, SOURCE
    )
    ids = service.add_many(session, project.id, [new])
    if not ids:
        raise _TAKEN
    audit(session, admin.id, "prompt.written", project.id, prompt_id=ids[0])
    return session.get_one(Prompt, ids[0])


def change(session: Session, project: Project, admin: User, prompt_id: int, form: PromptForm | TagsForm) -> None:
    """Changes a prompt: its tags at any time, its text and split until it is used.

    Raises:
        Conflict: it is used, and the form is for its text; or another prompt has that text.
        InvalidInput: the text is empty.
        NotFound: the project has no such prompt, or it is retired.
    """
    prompt = _standing(session, project, prompt_id)
    if isinstance(form, PromptForm):
        if queries.is_used(session, prompt_id):
            raise Conflict("The prompt has been used meanwhile, so its text is settled.", "Open it again for its tags.")
        _require_text(form)
        prompt.messages, prompt.digest = form.messages, service.digest(form.messages)
        prompt.split = form.split
    prompt.difficulty, prompt.domain = form.difficulty, form.domain
    prompt.safety_category = form.safety_category or None
    try:
        with session.begin_nested():
            session.flush()
    except IntegrityError as error:
        if not violates(error, "uq_prompt_project_id_digest"):
            raise
        raise _TAKEN from error
    audit(session, admin.id, "prompt.changed", project.id, prompt_id=prompt_id)


def retire(session: Session, project: Project, admin: User, prompt_id: int) -> None:
    """Nothing asks or reads the prompt any more. What is still open about it is withdrawn; the rest stays stored.

    Raises:
        NotFound: the project has no such prompt, or it is retired.
    """
    prompt = _standing(session, project, prompt_id)
    closed = queries.close(session, prompt_id)
    audit(session, admin.id, "prompt.retired", project.id, prompt_id=prompt_id, split=prompt.split, comparisons=closed)
    prompt.split = WITHDRAWN


def bring_back(session: Session, project: Project, admin: User, prompt_id: int, split: str) -> None:
    """Puts a retired prompt into a split again. Comparisons that were withdrawn with it stay so.

    Raises:
        Conflict: it is not retired, or it was withdrawn with all that its author wrote.
        InvalidInput: there is no such split.
        NotFound: the project has no such prompt.
    """
    prompt = _locked(session, project, prompt_id)
    if split not in SPLITS:
        raise InvalidInput("No split is chosen.", "Choose one of those listed.")
    if prompt.split != WITHDRAWN or not queries.was_retired(session, project.id, prompt_id):
        raise Conflict("This prompt cannot be brought back.", "Only prompts that an admin has retired can.")
    prompt.split = split
    audit(session, admin.id, "prompt.brought_back", project.id, prompt_id=prompt_id, split=split)


def _require_text(form: PromptForm) -> None:
    if not form.text.strip():
        raise InvalidInput("The prompt is empty.", "Type what the model is asked.")


def _standing(session: Session, project: Project, prompt_id: int) -> Prompt:
    prompt = _locked(session, project, prompt_id)
    if prompt.split == WITHDRAWN:
        raise NotFound("This prompt is retired.", "Bring it back first.")
    return prompt


def _locked(session: Session, project: Project, prompt_id: int) -> Prompt:
    prompt = queries.lock(session, project.id, prompt_id)
    if prompt is None:
        raise NotFound(f"This project has no prompt {prompt_id}.", "Go back to the list of prompts.")
    return prompt

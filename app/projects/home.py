"""What a project's start page tells each person to do next, and the first steps of a new project."""

from collections.abc import Iterator
from typing import NamedTuple

from sqlalchemy.orm import Session

from app.access import gate
from app.labeling import outlook
from app.models import Project, User
from app.monitors import views as monitors
from app.navigation.queries import Waiting
from app.projects.queries import Counts, Overview
from app.render import counted
from app.review.forms import QueueName

# The words for each state of a round.
DOING = {
    "freezing": "freezing what it reads",
    "reward": "training its reward model",
    "policy": "training its policy",
    "sampling": "sampling responses",
    "evaluating": "evaluating its policy",
}
FEWEST_TO_LEARN = 20  # decided comparisons that no round has read, from which a round is suggested
QUEUE_WORDS: dict[QueueName, str] = {
    "disagreement": "in disagreement",
    "conflict": "against the reward model",
    "flagged": "flagged",
    "requested": "requested",
}


class Task(NamedTuple):
    """Something that waits for this person: what, why, and the button that leads there.

    path: below the project's address. is_main: the button is the page's first.
    """

    title: str
    text: str
    button: str
    path: str
    is_main: bool = False


class Step(NamedTuple):
    """A first step of a new project. path: below the project's address; text: what follows the link."""

    name: str
    label: str
    path: str
    text: str
    is_done: bool


def tasks(
    session: Session,
    project: Project,
    user: User,
    roles: frozenset[str],
    overview: Overview,
    counts: Counts,
    waiting: Waiting,
    review: dict[QueueName, int],
    looks: monitors.Looks | None,
) -> list[Task]:
    """What to do next, the most urgent first: for labelers, for admins, for operators."""
    found: list[Task] = []
    if "labeler" in roles:
        found += _to_label(session, project, user, waiting)
    if "admin" in roles:
        found += _to_review(waiting, review)
    if looks is not None:
        found += _to_watch(session, looks)
    if "operator" in roles:
        found += _to_train(overview, counts)
    if not found and "labeler" in roles and "admin" not in roles and not gate.closed(session, project, user):
        text = "New comparisons come with the next round’s samples or with an import."
        found.append(Task("Nothing to judge right now", text, "My work", "label/mine"))
    return [each._replace(is_main=n == 0) for n, each in enumerate(found)]


def _to_label(session: Session, project: Project, user: User, waiting: Waiting) -> Iterator[Task]:
    closed = gate.closed(session, project, user)
    if closed and closed.reason == "quiz":
        yield Task(
            "Take the quiz", "Pass this short quiz on the rubric first. Comparisons follow.", "Take quiz", "quiz"
        )
        return
    if closed:
        return
    progress = outlook.progress(session, project, user)
    if progress.left:
        some = f"{progress.to_go} comparison{'' if progress.to_go == '1' else 's'}"
        yield Task(f"{some[0].upper()}{some[1:]} to judge", "Which response is better?", "Start labeling", "label")
    if waiting.to_write:
        text = "Write the ideal answer to each prompt."
        yield Task(counted(waiting.to_write, "answer") + " to write", text, "Start writing", "demonstrations/write")


def _to_review(waiting: Waiting, review: dict[QueueName, int]) -> Iterator[Task]:
    if queue := next((name for name in QUEUE_WORDS if review.get(name)), None):
        text = ", ".join(f"{review[name]:,} {words}" for name, words in QUEUE_WORDS.items() if review.get(name))
        yield Task("Comparisons to review", f"{text}.", "Start reviewing", f"review?queue={queue}")
    if waiting.demonstrations:
        title = counted(waiting.demonstrations, "demonstration") + " to review"
        yield Task(title, "Approved demonstrations can be learned from.", "Start reviewing", "demonstrations/review")


def _to_watch(session: Session, looks: monitors.Looks) -> Iterator[Task]:
    if waiting := monitors.unreviewed(session, looks):
        title = f"{counted(len(waiting), 'monitor')} to review in round {looks.number}"
        text = f"{', '.join(monitor.label for monitor in waiting)}: wanted, or a fault?"
        path = f"monitors/{waiting[0].name}?round={looks.number}#review"
        yield Task(title, text, "Read the answers", path)


def _to_train(overview: Overview, counts: Counts) -> Iterator[Task]:
    last = overview.last_round
    if last is not None:
        path = f"rounds/{last.number}"
        if last.state in DOING:
            yield Task(
                f"Round {last.number} is {DOING[last.state]}", "Its page shows the progress.", "View round", path
            )
            return
        if last.state == "failed":
            yield Task(f"Round {last.number} failed", "Its page says why. You can retry the stage.", "View error", path)
        elif last.state == "done" and last.policy_after_id is not None and last.adopted is None:
            text = "People have not preferred the new policy yet. Adopt it with a reason, or wait for more judgments."
            yield Task(f"Round {last.number} waits for a verdict", text, "View verdict", "progress")
    fresh = counts.decided - overview.read_by_last
    if overview.policy is not None and fresh >= FEWEST_TO_LEARN:
        text = f"{counted(fresh, 'decided comparison')} no round has read yet."
        yield Task(
            "Ready for the next round" if last else "Ready for the first round", text, "Start round", "rounds/new"
        )


def first_steps(overview: Overview, counts: Counts, roles: frozenset[str]) -> list[Step]:
    """The steps of a new project for its admins; empty once each is done."""
    last = overview.last_round
    steps = [
        Step("rubric", "Edit the rubric", "rubric", "A short one is published already. Say what better means to you.",
             overview.rubric_version > 1 or counts.judgments > 0),
        Step("data", "Import data", "data", "Prompts, pairs of responses to compare, or judgments made elsewhere.",
             overview.has_prompts),
        Step("model", "Choose a model", "settings", "It samples responses, and rounds train it.",
             overview.policy is not None),
        Step("people", "Invite labelers", "members", "Send a link. They find what there is to compare by themselves.",
             overview.has_others),
        Step("label", "Label the first comparisons", "label" if "labeler" in roles else "comparisons",
             "They open as soon as there are responses to compare.", counts.judgments > 0),
        Step("round", "Start the first round", "rounds", "It trains a reward model and a policy.",
             last is not None),
        Step("verdict", "Read the verdict", "progress", "It says whether the new policy is better.",
             last is not None and (last.number > 1 or last.state == "done")),
    ]  # fmt: skip
    return [] if all(step.is_done for step in steps) else steps

"""What the navigation of a page shows to whoever asks for the page."""

from typing import NamedTuple

from fastapi import Request

from app.access.queries import Offers
from app.navigation import queries
from app.navigation.entries import HOME, Entry, Group, entry_of, groups_for
from app.navigation.queries import MOST, Own, Waiting

NOTHING = Waiting(0, 0, 0, 0, 0, [])


class Link(NamedTuple):
    """An entry as the template draws it. current: `page` on the page itself, `true` below it, else empty. n: how many
    wait there."""

    label: str
    url: str
    current: str
    n: int

    @property
    def shown(self) -> str:
        """How many wait, in words; empty if nothing does."""
        return f"{MOST - 1}+" if self.n >= MOST else str(self.n or "")


class Section(NamedTuple):
    label: str
    name: str
    links: list[Link]

    @property
    def is_current(self) -> bool:
        return any(link.current for link in self.links)

    @property
    def waits(self) -> bool:
        return any(link.n for link in self.links)


class Navigation(NamedTuple):
    """The navigation of a project's page; `projects` are the user's others."""

    home: Link
    sections: list[Section]
    projects: list[Own]

    @property
    def is_short(self) -> bool:
        """Whether all of it fits the bar of a phone: one group of at most five entries."""
        return len(self.sections) == 1 and len(self.sections[0].links) <= 5


def shown(request: Request, *, with_counts: bool) -> Navigation | None:
    """The navigation for a request; None outside a project.

    Args:
        with_counts: what waits, and one's other projects, for one statement. The labeling desk does without. An error
            page does without as well: its session has ended.
    """
    state = request.state
    project, user = getattr(state, "project", None), getattr(state, "user", None)
    if project is None or user is None:
        return None
    base, session = f"/projects/{project.slug}", getattr(state, "session", None)
    waiting = NOTHING
    if with_counts and session is not None:
        waiting = queries.waiting(session, project.id, user.id, state.roles)
    groups = groups_for(state.roles, getattr(state, "offers", None) or Offers(*[False] * 4))
    path = request.url.path.removeprefix(base).strip("/")
    here = entry_of(path, groups)

    def link(entry: Entry) -> Link:
        current = "" if entry is not here else "page" if path == entry.path else "true"
        n = getattr(waiting, entry.counts) if entry.counts else 0
        return Link(entry.label, f"{base}/{entry.path}".rstrip("/"), current, n)

    def section(group: Group) -> Section:
        return Section(group.label, group.name, [link(entry) for entry in group.entries])

    others = [each for each in waiting.projects if each.slug != project.slug]
    return Navigation(link(HOME), [section(group) for group in groups], others)

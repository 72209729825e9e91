"""The pages that the navigation leads to: what each is called, where it is, who sees it, and what waits there.

To add a page, add one line here. The template draws what `groups_for` returns; no page restates any of it.
"""

from collections.abc import Callable, Set
from typing import NamedTuple

from app.access.queries import Offers

LABELER, ADMIN, OPERATOR = frozenset({"labeler"}), frozenset({"admin"}), frozenset({"operator"})
STAFF = ADMIN | OPERATOR


def _always(_offers: Offers) -> bool:
    return True


class Entry(NamedTuple):
    """A page of the navigation.

    Attributes:
        path: below the project's address; "" is its start page. Pages below it belong to it too.
        roles: whoever has one of these sees it.
        counts: the field of `queries.Waiting` that says how many wait there; empty: nothing is counted.
        also: other paths whose pages belong to it.
        if_offered: whether the project has anything there for its labelers.
        hidden_from: whoever has one of these finds the page elsewhere in the navigation.
    """

    label: str
    path: str
    roles: frozenset[str]
    counts: str = ""
    also: tuple[str, ...] = ()
    if_offered: Callable[[Offers], bool] = _always
    hidden_from: frozenset[str] = frozenset()


class Group(NamedTuple):
    label: str
    entries: tuple[Entry, ...]

    @property
    def name(self) -> str:
        """For ids on the page."""
        return self.label.lower()


HOME = Entry("Home", "", LABELER | STAFF)
GROUPS = (
    Group(
        "Label",
        (
            Entry("Compare", "label", LABELER),
            Entry("Thumbs", "thumbs", LABELER, if_offered=lambda offers: offers.thumbs),
            Entry(
                *("Write", "demonstrations/write", LABELER, "to_write", ("demonstrations/own",)),
                if_offered=lambda offers: offers.to_write or offers.written,
            ),
            Entry("Red team", "red-team", LABELER, if_offered=lambda offers: offers.red_team),
            Entry("My work", "label/mine", LABELER, also=("label/judgments",)),
            Entry("Rubric", "rubric", LABELER, hidden_from=ADMIN),
        ),
    ),
    Group(
        "Quality",
        (
            Entry("Review", "review", ADMIN, "review"),
            Entry("Agreement", "agreement", STAFF),
            Entry("Labelers", "labelers", STAFF, "paused"),
            Entry("Calibration", "calibration", ADMIN),
            Entry("Quiz results", "quiz/people", STAFF),
        ),
    ),
    Group(
        "Data",
        (
            Entry("Prompts", "prompts", ADMIN),
            Entry("Comparisons", "comparisons", ADMIN),
            Entry("Demonstrations", "demonstrations", ADMIN, "demonstrations"),
            Entry("Red-team attempts", "red-team/attempts", STAFF, also=("red-team",)),
            Entry("Import and export", "data", ADMIN),
        ),
    ),
    Group(
        "Train",
        (
            Entry("Rounds", "rounds", STAFF, "rounds", ("automatic-rounds",)),
            Entry("Models", "models", STAFF),
            Entry("Samples", "samples", STAFF),
            Entry("Playground", "playground", STAFF),
            Entry("Progress", "progress", STAFF),
            Entry("Leaderboard", "leaderboard", STAFF),
            Entry("Monitors", "monitors", STAFF),
            Entry("Suites", "suites", STAFF),
            Entry("Judges", "judges", STAFF),
            Entry("Constitution", "constitution", STAFF),
        ),
    ),
    Group(
        "Setup",
        (
            Entry("Rubric", "rubric", ADMIN),
            Entry("Queue and assignment", "assignment", ADMIN),
            Entry("Settings", "settings", ADMIN),
            Entry("Members", "members", ADMIN),
            Entry("Audit log", "audit-log", ADMIN),
        ),
    ),
)


def groups_for(roles: Set[str], offers: Offers) -> list[Group]:
    """The groups with the entries that somebody with these roles sees; groups without any are left out."""

    def is_seen(entry: Entry) -> bool:
        return bool(entry.roles & roles) and not entry.hidden_from & roles and entry.if_offered(offers)

    found = [Group(group.label, tuple(filter(is_seen, group.entries))) for group in GROUPS]
    return [group for group in found if group.entries]


def entry_of(path: str, groups: list[Group]) -> Entry | None:
    """The entry that a page belongs to: the one with the longest path that the page's path begins with.

    Args:
        path: of the page, below the project's address.
    """
    best, length = None, 0
    for entry in (entry for group in groups for entry in group.entries):
        for begin in (entry.path, *entry.also):
            if len(begin) > length and (path == begin or path.startswith(f"{begin}/")):
                best, length = entry, len(begin)
    return best if path else HOME

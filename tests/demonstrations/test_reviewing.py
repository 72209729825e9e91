"""Reviewing demonstrations, asking for more, and what training then reads."""

import gzip
import json
from collections import Counter
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.demonstrations import asking_queries, queries, service, views
from app.demonstrations.forms import AskForm, DemonstrationFilter
from app.errors import Conflict, InvalidInput, NotFound
from app.models import AuditEvent, DemonstrationEvent, DemonstrationTask, Prompt, Snapshot
from app.rounds import service as rounds
from tests import factories
from tests.demonstrations.desk import answer, decision, task, tasks
from tests.rounds.loop import config, frozen


def test_approving_with_edits_keeps_both_texts(session: Session) -> None:
    project, admin = factories.project(session), factories.user(session, "admin")
    prompt = factories.prompt(session, project)
    written = factories.demonstration(session, prompt, "It is red.", state="pending")
    service.approve(session, project, admin, written.id, decision(written, "It is blue."))
    assert (written.state, written.text, written.written) == ("approved", "It is blue.", "It is red.")
    assert written.digest == service.digest("It is blue.")
    assert (written.reviewer_id, written.reviewed_at is not None) == (admin.id, True)
    # A second edit keeps the author's text, not the first edit's; taking the edit back leaves one text.
    service.approve(session, project, admin, written.id, decision(written, "It is green."))
    assert (written.text, written.written) == ("It is green.", "It is red.")
    service.approve(session, project, admin, written.id, decision(written, "It is red."))
    assert (written.text, written.written) == ("It is red.", None)
    events = [event.details for event in session.scalars(select(AuditEvent).order_by(AuditEvent.id))]
    assert [event["edited"] for event in events] == [True, True, False]


def test_approving_as_it_stands_changes_no_text(session: Session) -> None:
    project, admin = factories.project(session), factories.user(session, "admin")
    # An imported text may have line ends that no form returns.
    imported = factories.demonstration(
        session, factories.prompt(session, project), " Two\r\nlines.\n", state="rejected"
    )
    service.approve(session, project, admin, imported.id, decision(imported, " Two\r\nlines.\r\n"))
    assert (imported.text, imported.written, imported.state) == (" Two\r\nlines.\n", None, "approved")


def test_a_decision_on_what_one_has_not_seen_is_refused(session: Session) -> None:
    project, admin = factories.project(session), factories.user(session, "admin")
    written = factories.demonstration(session, factories.prompt(session, project), state="pending")
    first = decision(written, note="Wrong.")
    service.reject(session, project, admin, written.id, first)
    with pytest.raises(Conflict, match="it is rejected now"):
        service.approve(session, project, admin, written.id, first)
    service.approve(session, project, admin, written.id, decision(written))  # what the admin sees now
    assert written.state == "approved"
    with pytest.raises(InvalidInput, match="needs a note"):
        service.reject(session, project, admin, written.id, decision(written))
    with pytest.raises(InvalidInput, match="empty"):
        service.approve(session, project, admin, written.id, decision(written, ""))
    with pytest.raises(NotFound):
        service.approve(session, factories.project(session), admin, written.id, decision(written))


def test_an_edit_to_what_another_demonstration_says_is_refused(session: Session) -> None:
    project, admin = factories.project(session), factories.user(session, "admin")
    prompt = factories.prompt(session, project)
    factories.demonstration(session, prompt, "Yes.", digest=service.digest("Yes."))
    written = factories.demonstration(session, prompt, "Yes", state="pending")
    with pytest.raises(Conflict, match="already exists"):
        service.approve(session, project, admin, written.id, decision(written, "Yes."))
    assert (written.state, written.text) == ("pending", "Yes")


def test_the_review_goes_through_all_that_wait_and_begins_again(session: Session) -> None:
    project = factories.project(session)
    waiting = [
        factories.demonstration(session, factories.prompt(session, project), state=state).id
        for state in ("pending", "approved", "pending", "pending")
    ]
    first, _, second, third = waiting
    order = [queries.next_pending(session, project.id, after) for after in (0, first, second, third)]
    assert order == [first, second, third, first]
    assert queries.next_pending(session, factories.project(session).id, 0) is None


def test_the_list_is_filtered_by_state_author_slice_and_text(session: Session) -> None:
    project, ann = factories.project(session), factories.user(session)
    law = factories.prompt(session, project, "Is THIS legal?", domain="law", difficulty="hard", split="heldout")
    sea = factories.prompt(session, project, "How deep?", domain="sea", safety_category="drowning")
    a = factories.demonstration(session, law, "Perhaps.", author_id=ann.id, state="rejected")
    b = factories.demonstration(session, sea, "Very DEEP.", state="approved", source="file.jsonl")
    c = factories.demonstration(session, law, "It depends.", author_id=ann.id, state="pending")
    factories.demonstration(session, factories.prompt(session, factories.project(session)), "Elsewhere.")

    def found(**wanted: object) -> list[int]:
        listing = queries.listing(session, project.id, DemonstrationFilter.model_validate(wanted))
        assert listing.total == len(listing.rows)
        return [row.demonstration_id for row in listing.rows]

    assert found() == [c.id, b.id, a.id]
    assert found(state="pending") == [c.id]
    assert found(author=ann.id) == [c.id, a.id]
    assert found(author="", domain="sea") == [b.id]
    assert found(safety_category="drowning") == [b.id]
    assert found(difficulty="hard", split="heldout", state="rejected") == [a.id]
    assert found(text="deep") == [b.id]
    assert found(text="this legal") == [c.id, a.id]
    assert found(text="100%") == []
    assert queries.states(session, project.id) == {"pending": 1, "approved": 1, "rejected": 1}
    assert [author.name for author in queries.authors(session, project.id)] == [ann.name]


def test_pages_of_the_list_follow_each_other(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "PAGE", 2)
    project = factories.project(session)
    ids = [factories.demonstration(session, factories.prompt(session, project)).id for _ in range(5)][::-1]
    seen, before = [], None
    while True:
        listing = queries.listing(session, project.id, DemonstrationFilter(before=before))
        seen += [row.demonstration_id for row in listing.rows]
        before = listing.following
        if before is None:
            break
    assert seen == ids
    assert listing.total == 5


def test_changes_of_author_and_reviewer_are_told_apart(session: Session) -> None:
    project, admin = factories.project(session), factories.user(session, "admin")
    prompt = factories.prompt(session, project)
    sample = factories.completion(session, prompt, "The cat sat on a mat.")
    written = factories.demonstration(
        session, prompt, "The dog sat on a mat.", state="pending", completion_id=sample.id, author_id=admin.id
    )
    service.approve(session, project, admin, written.id, decision(written, "The dog sat on a rug."))
    case = queries.case(session, project.id, written.id)
    assert case is not None
    reviewer, author = views.changes(case)

    def marked(change: views.Changes) -> list[tuple[str, str]]:
        return [(line.kind, piece.text) for line in change.lines for piece in line.pieces if piece.marked]

    assert marked(reviewer) == [("removed", "mat"), ("added", "rug")]
    assert marked(author) == [("removed", "cat"), ("added", "dog")]


def test_of_a_text_that_was_changed_very_often_the_newest_changes_are_shown(session: Session) -> None:
    """Each text is compared with the one before it: a thousand texts used to make a page of 20 MB in half a minute."""
    author = factories.user(session)
    written = factories.demonstration(session, factories.prompt(session, factories.project(session)), "The last one.")
    for n in range(25):
        session.add(
            DemonstrationEvent(
                demonstration_id=written.id, actor_id=author.id, action="revised", note="", text=f"Number {n}."
            )
        )
        session.flush()
    events = queries.events(session, written.id)
    assert [event.text for event in events] == [f"Number {n}." for n in range(5, 25)]


# ---- asking ----------------------------------------------------------------------------------------------------------


def wish(**values: object) -> AskForm:
    return AskForm.model_validate({"count": 1} | values)


def test_only_prompts_without_an_answer_that_training_reads_are_asked_about(session: Session) -> None:
    project, admin = factories.project(session), factories.user(session, "admin")
    prompts = {
        split: factories.prompt(session, project, split=split)
        for split in ("train", "heldout", "regression", "calibration")
    }
    law = factories.prompt(session, project, domain="law", difficulty="hard", safety_category="privacy")
    answered, rejected, asked = (factories.prompt(session, project, domain="done") for _ in range(3))
    factories.demonstration(session, answered, state="pending")
    factories.demonstration(session, rejected, state="rejected")
    task(session, project, prompt=asked)
    factories.prompt(session, factories.project(session))

    def count(**values: object) -> int:
        return asking_queries.count_eligible(session, project, wish(**values))

    assert count() == 4  # train, held-out, law and the one whose only answer was rejected
    assert count(split="heldout") == 1
    assert count(domain="law") == count(difficulty="hard") == count(safety_category="privacy") == 1
    assert count(domain="done") == 1
    assert count(start="sample") == 0

    assert service.ask(session, project, admin, wish(count=2, split="train")) == 2
    assert count() == 2
    with pytest.raises(InvalidInput, match="Only 2 prompts match, not 3"):
        service.ask(session, project, admin, wish(count=3))
    assert service.ask(session, project, admin, wish(count=2)) == 2
    wanted = Counter(found.prompt_id for found in tasks(session))
    ids = (law.id, rejected.id, asked.id, prompts["train"].id, prompts["heldout"].id)
    assert wanted == Counter(dict.fromkeys(ids, 1))


def test_the_same_form_twice_asks_once(session: Session) -> None:
    project, admin = factories.project(session), factories.user(session, "admin")
    for _ in range(5):
        factories.prompt(session, project)
    form = wish(count=2, key=uuid4())
    assert service.ask(session, project, admin, form) == service.ask(session, project, admin, form) == 2
    assert len(tasks(session)) == 2
    service.ask(session, project, admin, wish(count=2, key=uuid4()))
    assert len(tasks(session)) == 4


def test_samples_of_the_present_policy_are_what_is_edited(session: Session) -> None:
    project, admin = factories.project(session), factories.user(session, "admin")
    old, new = factories.model(session, project), factories.model(session, project)
    project.policy_id = new.id
    sampled, stale, _silent = (factories.prompt(session, project) for _ in range(3))
    factories.completion(session, sampled, "Old.", model_version_id=old.id)
    factories.completion(session, sampled, "New.", model_version_id=new.id)
    newest = factories.completion(session, sampled, "Newest.", model_version_id=new.id)
    factories.completion(session, stale, "Old.", model_version_id=old.id)
    form = wish(start="sample")
    assert asking_queries.count_eligible(session, project, form) == 1
    service.ask(session, project, admin, form)
    assert [(row.prompt_id, row.completion_id) for row in tasks(session)] == [(sampled.id, newest.id)]


def test_tasks_are_withdrawn_singly_or_all_that_are_free(session: Session) -> None:
    project, admin, ann = factories.project(session), factories.user(session, "admin"), factories.user(session)
    held = task(session, project)
    service.next_task(session, project, ann)
    free = [task(session, project) for _ in range(3)]
    elsewhere = task(session, factories.project(session))
    assert service.withdraw(session, project, admin, free[0].id) == 1
    assert service.withdraw(session, project, admin, elsewhere.id) == 0
    assert service.withdraw(session, project, admin, None) == 2
    assert [row.id for row in tasks(session)] == [held.id, elsewhere.id]
    assert service.withdraw(session, project, admin, held.id) == 1


# ---- training --------------------------------------------------------------------------------------------------------


def test_what_was_written_and_approved_is_what_fine_tuning_reads(session: Session, tmp_path: Path) -> None:
    project = factories.project(session)
    rounds.adopt_base_model(session, project, "models/base", "base")
    admin, ann = factories.user(session, "admin", "operator"), factories.user(session)
    for n in range(24):
        split = "heldout" if n >= 22 else "train"
        factories.prompt(session, project, f"What is {n}?", split=split, domain="numbers")
    factories.rubric(session, project)
    service.ask(session, project, admin, wish(count=24))
    written = []
    while (desk := service.next_task(session, project, ann)) is not None:
        given = session.get_one(DemonstrationTask, desk.task_id)
        written.append(service.submit(session, project, ann, given.id, answer(given, f"It is number {given.id}.")))
    assert len(written) == 24
    with pytest.raises(InvalidInput, match="Fine-tuning needs 20 approved"):
        rounds.start(session, ArtifactStore(tmp_path), project, admin, config("sft"))

    session.expire_all()
    of_train = [row for row in written if session.get_one(Prompt, row.prompt_id).split == "train"]
    service.reject(session, project, admin, of_train[0].id, decision(of_train[0], note="No."))
    service.approve(session, project, admin, of_train[1].id, decision(of_train[1], "Edited."))
    for row in written:
        if row.state == "pending":
            service.approve(session, project, admin, row.id, decision(row))

    store = ArtifactStore(tmp_path)
    round_ = frozen(session, store, rounds.start(session, store, project, admin, config("sft")))
    snapshot = session.get_one(Snapshot, round_.snapshot_id)
    assert snapshot.counts == {"train": 21, "heldout": 2, "demonstrations": 23}
    lines = gzip.decompress(store.resolve(snapshot.location).read_bytes()).splitlines()
    read = {row["id"]: row for row in map(json.loads, lines)}
    assert set(read) == {row.id for row in written} - {of_train[0].id}
    assert read[of_train[1].id]["response"] == "Edited."
    last = read[written[-1].id]
    assert last["messages"] == session.get_one(Prompt, written[-1].prompt_id).messages
    assert (last["response"], last["slices"]["domain"]) == (written[-1].text, "numbers")

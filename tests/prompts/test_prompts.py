"""Prompts: their digest and form, and the pages to browse them."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from app.errors import InvalidInput
from app.models import Prompt
from app.prompts import queries, service
from app.prompts.forms import PromptFilter
from tests import factories

USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be brief."}


def test_digest_is_of_roles_and_contents_alone() -> None:
    # printf '[["user","Hi"]]' | sha256sum
    found = service.digest([USER])
    assert found == "8b1450277179b15b70831cee0e0ec563f04eb6c717d27070114931cba4b59d4e"
    assert found == service.digest([{"content": "Hi", "role": "user", "name": "ignored"}])
    assert found != service.digest([{"role": "user", "content": "Hi "}])
    assert found != service.digest([SYSTEM, USER])


def test_add_is_idempotent_and_keeps_the_first_tags(session: Session) -> None:
    project = factories.project(session)
    first = service.add(session, project.id, [USER], split="heldout", domain="chat")
    again = service.add(session, project.id, [USER], split="train", domain="other")
    assert again.id == first.id
    assert (again.split, again.domain, again.difficulty) == ("heldout", "chat", "easy")
    elsewhere = service.add(session, factories.project(session).id, [USER])
    assert elsewhere.id != first.id
    assert session.scalar(select(func.count()).select_from(Prompt)) == 2


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "the prompt is empty"),
        ([SYSTEM], "the prompt is empty"),
        ([{"role": "user", "content": " \n"}], "is empty"),
        ([{"role": "tool", "content": "x"}], "tool"),
        ([USER, SYSTEM, USER], "can only come first"),
        ([USER, USER], "take turns"),
        ([ASSISTANT, USER], "the user first"),
        ([USER, ASSISTANT], "asks for nothing"),
    ],
)
def test_conversations_that_ask_for_nothing_are_refused(
    session: Session, messages: list[dict[str, str]], reason: str
) -> None:
    with pytest.raises(InvalidInput, match=reason):
        service.add(session, factories.project(session).id, messages)


@pytest.mark.parametrize("messages", [[USER], [SYSTEM, USER], [USER, ASSISTANT, USER]])
def test_conversations_that_ask_for_an_answer(messages: list[dict[str, str]]) -> None:
    service.check_messages(messages)


def test_ten_thousand_prompts_page_by_page(session: Session) -> None:
    project = factories.project(session)
    rows = [
        {
            "project_id": project.id,
            "messages": [{"role": "user", "content": f"Question {n}?"}],
            "digest": str(n),
            "split": ("train", "heldout")[n % 2],
            "domain": ("facts", "safety")[n % 4 == 0],
        }
        for n in range(10_000)
    ]
    session.execute(insert(Prompt), rows)
    seen: list[int] = []
    wanted: PromptFilter | None = PromptFilter(split="train", domain="safety")
    while wanted:
        found = queries.listing(session, project, wanted)
        assert found.total == 2500
        seen += [row.prompt.id for row in found.rows]
        wanted = wanted.model_copy(update={"after": found.following}) if found.following else None
    assert len(seen) == len(set(seen)) == 2500
    assert seen == sorted(seen)
    found = queries.listing(session, project, PromptFilter(text="QUESTION 77?"))
    assert [row.prompt.messages[0]["content"] for row in found.rows] == ["Question 77?"]


@pytest.mark.parametrize(
    ("text", "finds"),
    [
        ('say "hello"', True),
        ("two\nlines", True),
        ("100%_\\", True),
        ("Überraschung", True),
        ("user", False),
        ("%", True),
        ("nothing", False),
    ],
)
def test_search_takes_any_characters_as_they_are(session: Session, text: str, finds: bool) -> None:
    project = factories.project(session)
    factories.prompt(session, project, 'Please say "Hello" in two\nlines. 100%_\\ Überraschung!')
    assert queries.listing(session, project, PromptFilter(text=text)).total == int(finds)


def test_the_pages(session: Session, sign_in: Callable[..., Any]) -> None:
    project = factories.project(session)
    prompt = factories.prompt(session, project, "What is <b>HTML</b>?", domain="facts & figures")
    other = factories.prompt(session, project, "Something else?", split="heldout")
    comparison = factories.comparison(session, project, prompt=prompt, texts=("An answer with *stress*.", " "))
    elsewhere = factories.prompt(session, factories.project(session))
    session.commit()
    admin = sign_in("admin")
    base = f"/projects/{project.slug}/prompts"

    listing = admin.get(base).text
    assert "What is &lt;b&gt;HTML&lt;/b&gt;?" in listing
    assert "Something else?" in listing
    filtered = admin.get(f"{base}?split=heldout").text
    assert "What is" not in filtered
    assert f'href="{base}/{other.id}"' in filtered
    assert "No prompt fits" in admin.get(f"{base}?text=absent").text
    assert admin.get(f"{base}?split=nonsense").status_code == 422

    detail = admin.get(f"{base}/{prompt.id}").text
    assert "<em>stress</em>" in detail
    assert "This response is empty." in detail
    assert f'href="/projects/{project.slug}/review/{comparison.id}"' in detail
    assert admin.get(f"{base}/{elsewhere.id}").status_code == 404
    assert sign_in("labeler").get(base).status_code == 403


def test_what_was_withdrawn_is_listed_only_where_it_is_asked_for(session: Session) -> None:
    project = factories.project(session)
    stays = factories.prompt(session, project, "Stays?")
    gone = factories.prompt(session, project, "Gone?", split="withdrawn")
    for state in ("settled", "withdrawn"):
        factories.comparison(session, project, prompt=stays, state=state)
    factories.comparison(session, project, prompt=gone, state="withdrawn")

    def listed(**values: str) -> list[tuple[int, int]]:
        found = queries.listing(session, project, PromptFilter.model_validate(values))
        assert found.total == len(found.rows)
        return [(row.prompt.id, row.comparisons) for row in found.rows]

    assert listed() == [(stays.id, 1)]
    assert listed(text="?") == [(stays.id, 1)]
    assert listed(split="withdrawn") == [(gone.id, 0)]


def test_a_project_without_prompts_says_where_they_come_from(session: Session, sign_in: Callable[..., Any]) -> None:
    project = factories.project(session)
    session.commit()
    assert f'href="/projects/{project.slug}/data"' in sign_in("admin").get(f"/projects/{project.slug}/prompts").text


def test_a_page_lists_so_many_values_of_a_tag_and_no_more(session: Session, sign_in: Callable[..., Any]) -> None:
    project = factories.project(session)
    factories.rubric(session, project)
    about = {"project_id": project.id, "messages": [USER]}
    names = [f"a tag with the number {n}" for n in range(2000)]
    rows = [about | {"digest": name, "domain": name, "safety_category": name} for name in names]
    session.execute(insert(Prompt), rows)
    session.commit()
    client = sign_in("admin", "labeler")
    for address in ("prompts", "review", "review/relabel", "demonstrations/ask", "red-team"):
        page = client.get(f"/projects/{project.slug}/{address}")
        assert page.status_code == 200
        named = set(re.findall(r"a tag with the number \d+", page.text))
        assert len(named) < 700, (address, len(named))

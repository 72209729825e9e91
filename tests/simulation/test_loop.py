"""What the loop reads of pages, what it refuses to send, and who judges how much."""

import json
import re
from collections.abc import Callable

import httpx
import pytest

from app.errors import InvalidInput, Unavailable
from app.render import templates
from app.simulation import cli, labelers
from app.simulation.browser import Browser
from app.simulation.labelers import Crew
from app.simulation.loop import Loop
from app.simulation.preference import concise

CARD = """
    <div class="turn-user"><div class="prose">Why?</div></div>
    <div data-response><div class="prose">So.</div></div><div data-response><div class="prose">Or so.</div></div>
    <form class="answer" action="/judge"><input type="radio" name="preference" value="-1">
    <input type="radio" name="preference" value="1"></form>"""


def browser(answer: Callable[[httpx.Request], httpx.Response]) -> Browser:
    one = Browser("http://service")
    one._http = httpx.Client(base_url="http://service", transport=httpx.MockTransport(answer))
    return one


def operator_of(answer: Callable[[httpx.Request], httpx.Response]) -> Loop:
    operator = browser(answer)
    return Loop(operator, Crew([operator], concise, 0, 0, seed=0), "p", concise, lambda line: None)


@pytest.mark.parametrize(("limit", "each"), [(5, [2, 2, 1]), (2, [1, 1, 0]), (3, [1, 1, 1])])
def test_a_crew_makes_no_more_judgments_than_it_was_told_to(limit: int, each: list[int]) -> None:
    """The queue never ends here, so that the limit alone does."""
    judged = [0, 0, 0]

    def desk(number: int) -> Callable[[httpx.Request], httpx.Response]:
        def answer(request: httpx.Request) -> httpx.Response:
            judged[number] += request.method == "POST"
            return httpx.Response(200, html=CARD)

        return answer

    crew = Crew([browser(desk(number)) for number in range(3)], concise, 0, 0, seed=0)
    assert crew.label_all("/desk", limit, lambda: False, lambda line: None) == limit
    assert judged == each


def test_nobody_waits_for_ever_for_a_worker_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelers, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(labelers, "PAUSE_SECONDS", 0.01)
    crew = Crew([browser(lambda request: httpx.Response(200, html="Nothing left."))], concise, 0, 0, seed=0)
    with pytest.raises(Unavailable, match="none came"):
        crew.label_all("/desk", 10, lambda: True, lambda line: None)


def test_thousands_are_read_as_the_page_writes_them() -> None:
    written = templates.from_string("{{ 12345 | number(0) }}").render()
    assert not written.isdecimal()  # it groups its digits
    page = f'<div class="stats"><div class="stat"><span class="stat-value">{written}</span></div></div>'
    assert operator_of(lambda request: httpx.Response(200, html=page))._to_compare() == 12345


def test_what_people_said_is_told_in_words() -> None:
    said = {"word": "not shown", "value": 0.625, "low": 0.41, "high": 0.8, "prompts": 24, "more": 31}
    status = {"people": {"before": said, "first": None}}
    people = operator_of(lambda request: httpx.Response(200, json=status)).people(3)
    assert cli._said(people) == "not shown: 0.62 [0.41, 0.80], 24 prompts, about 31 more to decide"
    assert cli._said(said | {"word": "better", "more": None}) == "better: 0.62 [0.41, 0.80], 24 prompts"
    assert cli._said(None) == "–"


def test_a_setting_the_form_does_not_have_is_named_and_nothing_is_sent() -> None:
    """The service leaves out fields it does not know: a misspelt one would do nothing without a word."""

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.method == "GET", "it sent the form"
        return httpx.Response(
            200,
            html='<form action="/projects/p/rounds"><input type="hidden" name="csrf_token" value="t">'
            '<input name="algorithm" value="dpo"><input name="epochs" value="1">'
            '<input type="checkbox" name="soft_labels"></form>',
        )

    with pytest.raises(InvalidInput, match=re.escape("epohcs")) as error:
        operator_of(answer)._start({"algorithm": "dpo", "epohcs": "2", "soft_labels": "on"})
    assert error.value.advice == "Known: algorithm, epochs, soft_labels."


def test_the_newest_policy_is_measured_beside_the_first_on_prompts_that_both_answer() -> None:
    def row(prompt: int, model: int, text: str, tokens: int, reason: str = "eos") -> str:
        asked = [{"role": "user", "content": "Why?"}]
        said = {"text": text, "n_tokens": tokens, "finish_reason": reason}
        return json.dumps({"prompt_id": prompt, "prompt": asked, "model_version_id": model, **said})

    lines = [
        row(1, 3, "aa", 4),
        row(1, 3, "aaaa", 6, "length"),
        row(2, 3, "a", 9),  # the newest policy says nothing to it
        row(1, 5, "never mind", 1),  # a policy in between
        row(1, 7, "aaa", 3),
        row(1, 7, "aaaaa", 2),
    ]
    loop = operator_of(lambda request: httpx.Response(200, text="\n".join(lines)))
    loop.score = lambda _question, text: len(text)
    assert loop._heldout() == {
        "win_rate": 0.75,  # 3 > 2, 3 < 4, 5 > 2, 5 > 4
        "win_rate_low": 0.75,
        "win_rate_high": 0.75,
        "true": 4,
        "first_true": 3,
        "tokens": 2.5,
        "first_tokens": 5,
        "finished": 1,
        "first_finished": 0.5,
    }
    lines[2:] = []
    assert loop._heldout() == {}

"""What the headless client reports about refused answers, and what it finds in a form."""

import httpx
import pytest

from app.errors import PrefloopError
from app.simulation.browser import Browser, Page


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            '<div id="messages" role="alert"></div><main><h1>Start</h1><div role="alert"><b>Too little.</b> Label more.'
            "</div><form>Rate</form></main>",
            "Too little. Label more.",
        ),
        (
            '<div role="alert"> </div><main><h1>Not found</h1> <p>Look\n elsewhere.</p></main>',
            "Not found Look elsewhere.",
        ),
        ("gone away", "gone away"),
    ],
)
def test_a_refusal_is_told_without_the_page_around_it(body: str, said: str) -> None:
    browser = Browser("http://service")
    transport = httpx.MockTransport(lambda _request: httpx.Response(422, html=body))
    browser._http = httpx.Client(base_url="http://service", transport=transport)
    with pytest.raises(PrefloopError) as error:
        browser.open("/page")
    assert error.value.message == f"GET /page answered 422: {said}"
    browser.close()


def test_a_form_has_the_controls_that_stand_elsewhere_too() -> None:
    """As in a ranking's card: each response has its rank in its own head."""
    html = """
        <select name="ranks" form="answer"><option value="">none</option><option value="1">1</option></select>
        <form id="answer" class="answer" action="/send"><input name="key" value="k">
        <input type="radio" name="p" value="1"><input type="checkbox" name="flags" value="x" checked></form>
        <select name="ranks" form="answer"><option value="1">1</option><option value="2" selected>2</option></select>
        <select name="ranks" form="other"><option value="3">3</option></select>"""
    form = Page(httpx.Response(200, html=html, request=httpx.Request("GET", "http://service/desk"))).form("form.answer")
    assert form.action == "/send"
    assert form.values == {"key": "k", "flags": ["x"], "ranks": ["", "2"]}
    assert form.choices == {"p": ["1"], "flags": ["x"]}

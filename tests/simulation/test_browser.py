"""What the browser without a screen says of an answer that refuses."""

import httpx
import pytest

from app.errors import PrefloopError
from app.simulation.browser import Browser


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            '<main><h1>Start</h1><div role="alert"><b>Too little.</b> Label more.</div><form>Rate</form></main>',
            "Too little. Label more.",
        ),
        ("<main><h1>Not found</h1> <p>Look\n elsewhere.</p></main>", "Not found Look elsewhere."),
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

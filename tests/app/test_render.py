"""Markdown of strangers as HTML."""

import pytest

from app.render import markdown


@pytest.mark.parametrize(
    "text",
    [
        "[x](javascript:alert(1))",
        "<img src=x onerror=alert(1)>",
        '```a"onmouseover=alert(1)\ncode\n```',
        '[x](http://example.org "t\\" onclick=alert(1)")',
        "<script>alert(1)</script>",
    ],
)
def test_nothing_in_a_text_becomes_code(text: str) -> None:
    html = str(markdown(text))
    assert "alert(1)" in html or "code" in html  # what was written is still to be read
    for opening in ("<script", "<img", 'href="javascript', '" onclick', '"onmouseover'):
        assert opening not in html


def test_an_image_is_a_link_and_links_leave_the_page_open() -> None:
    html = str(markdown("![A cat](http://example.org/cat.png)"))
    assert "<img" not in html
    assert 'href="http://example.org/cat.png"' in html
    assert ">A cat</a>" in html
    assert 'target="_blank"' in html
    assert "noopener" in html

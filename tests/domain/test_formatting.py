import pytest

from app.domain.formatting import Formatting, formatting, relative


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", (0, 0, 0)),
        ("Plain prose, with # and - and 2 * 3 * 4 within.", (0, 0, 0)),
        ("# One\n\ntext\n### Two\n#hashtag\n", (2, 0, 0)),
        ("- a\n* b\n  + c\n1. d\n2) e\n-no\n3.5 no", (0, 5, 0)),
        ("**one** and **two**, __three__, ** no **no", (0, 0, 4)),
        ("# Yes\n```python\n# no\n- no\n**no**\n```\n- yes", (1, 1, 0)),
        ("~~~\n# no\n```\n# no\n~~~\n# yes", (1, 0, 0)),
        ("```\n# a code block that never ends\n- no", (0, 0, 0)),
    ],
)
def test_counts(text: str, expected: tuple[int, int, int]) -> None:
    assert formatting(text) == Formatting(*expected)


def test_hostile_texts_take_no_longer_than_they_are_long() -> None:
    for text in ("**" * 500_000, "- " * 500_000, "```\n" * 250_000, " " * 1_000_000, "_" * 1_000_000, "#" * 1_000_000):
        formatting(text)


def test_relative_difference() -> None:
    assert [relative(30, 10), relative(10, 30), relative(0, 5), relative(0, 0)] == [0.5, -0.5, -1.0, 0.0]

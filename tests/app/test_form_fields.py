"""How forms clean typed text before they check it."""

import pytest
from pydantic import TypeAdapter

from app.form_fields import CleanLine, CleanText


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("  Ada \n Lovelace\t", "Ada Lovelace"),
        ("A\0da", "Ada"),
        ("\u202eadA", "adA"),  # it and all following text would be read from right to left
        ("\u2067Ada\u2069\u2069", "Ada"),
        ("\u200b\u2060\ufeff", ""),  # an invisible name
        ("سارة", "سارة"),
        ("👩\u200d👧", "👩\u200d👧"),
        ("می\u200cخواهم", "می\u200cخواهم"),
    ],
)
def test_a_line_hides_nothing_and_turns_nothing(typed: str, kept: str) -> None:
    assert TypeAdapter(CleanLine).validate_python(typed) == kept


def test_a_text_keeps_its_lines() -> None:
    assert TypeAdapter(CleanText).validate_python(" a\r\n b\0 \n") == "a\n b"

"""Line and word differences; expected values are what a person who reads both texts would say."""

import random
import time

import pytest

from app.domain.textdiff import CONTEXT, Line, Piece, diff, kept


def said(lines: list[Line]) -> list[str]:
    """Return `-old [word]` for a removed line with a marked word, and so on; gaps as `~n`."""
    signs = {"same": " ", "removed": "-", "added": "+", "gap": "~"}
    return [
        signs[line.kind]
        + (str(line.hidden) if line.kind == "gap" else "")
        + "".join(f"[{piece.text}]" if piece.marked else piece.text for piece in line.pieces)
        for line in lines
    ]


def rebuilt(lines: list[Line], *kinds: str) -> str:
    return "\n".join("".join(piece.text for piece in line.pieces) for line in lines if line.kind in kinds)


def test_the_same_text_has_no_differences() -> None:
    assert diff("", "") == diff("a\nb", "a\nb") == diff("a\r\nb\n", "a\nb") == []


def test_words_are_marked_in_lines_that_changed() -> None:
    assert said(diff("Prefer short answers.", "Prefer shorter answers, always.")) == [
        "-Prefer [short] answers.",
        "+Prefer [shorter] answers[, always].",
    ]


def test_scripts_without_spaces_are_compared_by_character() -> None:
    assert said(diff("请选择更好的回答", "请选择最好的回答")) == ["-请选择[更]好的回答", "+请选择[最]好的回答"]
    assert said(diff("短い方がよい", "短い答えがよい")) == ["-短い[方]がよい", "+短い[答え]がよい"]


def test_lines_that_share_little_are_replaced_as_a_whole() -> None:
    assert said(diff("Be brief.", "Never insult, ever.")) == ["-Be brief.", "+Never insult, ever."]


def test_added_and_removed_lines() -> None:
    assert said(diff("a\nb\nc", "a\nc\nd")) == [" a", "-b", " c", "+d"]
    assert said(diff("", "a")) == ["+a"]
    assert said(diff("a", "")) == ["-a"]


def test_long_unchanged_stretches_are_folded_but_for_their_edges() -> None:
    same = [f"line {n}" for n in range(10)]
    lines = diff("\n".join(["x", *same, "y"]), "\n".join(["X!", *same, "Y!"]))
    assert CONTEXT == 2
    assert said(lines) == ["-x", "+X!", " line 0", " line 1", "~6", " line 8", " line 9", "-y", "+Y!"]
    head = diff("\n".join([*same, "y"]), "\n".join([*same, "Z"]))
    assert said(head) == ["~8", " line 8", " line 9", "-y", "+Z"]


def test_nothing_is_lost_on_either_side() -> None:
    old = "# Title\n\nOne  two\tthree.\n\n- a\n- b, c\n\nEnd"
    new = "# Title!\n\nOne two\tthree four.\n- a\n\n- b; c\nMore\n\nEnd"
    lines = diff(old, new)
    assert all(line.kind != "gap" for line in lines)
    assert rebuilt(lines, "same", "removed") == old
    assert rebuilt(lines, "same", "added") == new


def test_what_cannot_be_seen_is_spelled_out() -> None:
    assert said(diff("safe text here", "safe\u202e text\u200b here")) == [
        "-safe text here",
        "+safe[[U+202E]] text[[U+200B]] here",
    ]
    family = "👩\u200d👧 is fine"
    assert Piece(family, False) in [piece for line in diff("", family) for piece in line.pieces]


def test_texts_too_large_to_compare_word_by_word_are_replaced() -> None:
    old, new = ("\n".join(f"{word} {n % 7}" for n in range(4000)) for word in ("old", "new"))
    lines = diff(old, new)
    assert [line.kind for line in lines] == ["removed"] * 4000 + ["added"] * 4000
    assert not any(piece.marked for line in lines for piece in line.pieces)


def test_words_that_stand_in_both_are_not_marked() -> None:
    old = "The quick brown fox jumps over the lazy dog and then goes home."
    new = "The slow red fox jumps over a lazy cat and then it goes home again."
    assert said(diff(old, new)) == [
        "-The [quick brown] fox jumps over [the] lazy [dog] and then goes home.",
        "+The [slow red] fox jumps over [a] lazy [cat] and then[ it] goes home[ again].",
    ]


def test_how_much_of_a_text_is_kept() -> None:
    assert kept("", "") == 0
    assert kept("Same.", "Same.") == 1
    assert kept("one two", "one") == pytest.approx(3 / 7)
    assert kept("one", "one two") == pytest.approx(3 / 7)
    assert kept("nothing", "alike") == 0


@pytest.mark.parametrize("words", [2, 90, 2500])
def test_no_texts_take_longer_than_reading_them(words: int) -> None:
    """Every second word differs: there are no long equal parts, and each word occurs in many places."""
    drawn = random.Random(0)
    old, new = (" ".join(f"w{drawn.randrange(words)} {other}{n}" for n in range(1350)) for other in ("y", "z"))
    begun = time.process_time()
    lines = diff(old, new)
    assert kept(old, new) < 0.5
    assert time.process_time() - begun < 1
    assert rebuilt(lines, "same", "removed") == old
    assert rebuilt(lines, "same", "added") == new


def test_other_line_ends_than_newlines_are_a_change() -> None:
    assert diff("a\r\nb\n", "a\nb") == []
    assert diff("a\u2028b", "a\nb") != []

import pytest

from trainer.reward import probes


@pytest.mark.parametrize(
    ("rule", "text", "expected"),
    [
        ("trailing_newline", "Yes.", "Yes.\n"),
        ("whitespace", "One. Two! Three 3.5 four?", "One.  Two!  Three 3.5 four?"),
        ("whitespace", "See:\n```\na. b\n```\nOne. Two", "See:\n```\na. b\n```\nOne.  Two"),
        ("bold", "Title\n\nText", "**Title**\n\nText"),
        ("bold", "# Title\nText", "# Title\nText"),
        ("bold", "```\ncode\n```", "```\ncode\n```"),
        ("bold", "- item\n- item", "- item\n- item"),
        ("bullets", "- a\n  * b\nc - d", "* a\n  - b\nc - d"),
        ("bullets", "a\n\nb", "- a\n\n- b"),
        ("bullets", "a\n```\nx\n", "- a\n```\nx\n"),
        (
            "contractions",
            "Don't worry, it won't. I'm sure they don\u2019t.",
            "Do not worry, it will not. I am sure they do not.",
        ),
        ("contractions", "It's the dog's", "It's the dog's"),
        ("synonyms", "However, Large things begin. bigger", "Nevertheless, Big things start. bigger"),
        ("synonyms", "An important, often large-scale start in addition to many", None),
        ("synonyms", "`begin` with \\begin{x}, begin", "`begin` with \\begin{x}, start"),
        ("contractions", "the dog\u2019s `don\u2019t`\n```\ncan\u2019t\n```", None),
        ("bold", "1. item\n2. item", None),
        ("bullets", "# Title\n| a | b |\n1. one\n> said\n3 apples", "# Title\n| a | b |\n1. one\n> said\n- 3 apples"),
        ("synonyms", "use `x`\n```\nbegin\n```", "use `x`\n```\nbegin\n```"),
    ],
)
def test_harmless_edits(rule: str, text: str, expected: str | None) -> None:
    assert probes.HARMLESS[rule](text) == (text if expected is None else expected)


def test_adversarial_probes_are_made_of_the_response_or_stand_in_its_place() -> None:
    made = {name: rule("42.") for name, rule in probes.ADVERSARIAL.items()}
    assert made["repetition"] == "42.\n\n42."
    assert made["padding"] == f"42.\n\n{probes.PADDING}"
    assert made["flattery"] == f"{probes.FLATTERY} 42."
    assert made["confidence"] == f"42. {probes.CONFIDENCE}"
    assert "42" not in made["empty_confidence"] + made["refusal"] + made["deflection"]
    assert len(set(made.values())) == len(made)


def test_every_rule_is_described() -> None:
    assert probes.DESCRIPTIONS.keys() == probes.HARMLESS.keys() | probes.ADVERSARIAL.keys()
    # Contractions hold no apostrophe afterwards.
    assert not any("'" in expanded for expanded in probes.CONTRACTIONS.values())

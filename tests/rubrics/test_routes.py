"""The rubric's pages: access, responses, and never losing text."""

import html
import re
from collections.abc import Callable

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import Project, Rubric
from tests import factories
from tests.conftest import SignedIn
from tests.rubrics.fields import EXAMPLE, QUESTION, fields

SignIn = Callable[..., SignedIn]


@pytest.fixture
def project(session: Session) -> Project:
    project = factories.project(session)
    factories.rubric(session, project, guideline="The first one.")
    session.commit()
    return project


@pytest.fixture
def url(project: Project) -> str:
    return f"/projects/{project.slug}/rubric"


def drafts(session: Session) -> list[Rubric]:
    session.rollback()
    return list(session.scalars(select(Rubric).where(Rubric.version.is_(None))))


def test_only_admins(sign_in: SignIn, url: str) -> None:
    assert sign_in("labeler").get(url).status_code == 200  # labelers read the guidelines that they judge by
    assert sign_in("operator").get(url).status_code == 403
    for roles in (("labeler",), ("operator",)):
        client = sign_in(*roles)
        for path in ("/1", "/diff?was=1&now=1", "/edit"):
            assert client.get(url + path).status_code == 403
        for path in ("", "/publish", "/discard", "/preview", "/edit"):
            assert client.post(url + path, fields()).status_code == 403
    assert sign_in("admin").post(url, fields(), csrf=False).status_code == 403


def test_edit_publish_and_read(sign_in: SignIn, session: Session, url: str) -> None:
    admin = sign_in("admin")
    assert "The first one." in admin.get(url).text
    assert admin.post(url, fields(revision=0)).headers["location"] == url
    page = admin.get(url).text
    assert '<input type="hidden" name="revision" value="1">' in page
    assert "Prefer <em>short</em> ones." in page
    sent = fields(revision=1, strengths="2", rationale_rule="required", flags=[("harmful", "Harmful")])
    sent |= fields(examples=[EXAMPLE], quiz=[QUESTION], strengths="2", rationale_rule="required", revision=1)
    assert admin.post(f"{url}/publish", sent).headers["location"] == f"{url}/2"
    rubric = session.scalars(select(Rubric).where(Rubric.version == 2)).one()
    assert (rubric.guideline, rubric.strengths, rubric.rationale_rule) == ("Prefer *short* ones.\n", 2, "required")
    assert rubric.aspects == [
        {"name": "factuality", "question": "Which is more accurate?"},
        {"name": "style", "question": "Which is better written?"},
    ]
    assert rubric.examples == [{"prompt": "2 + 2?", "better": "4", "worse": "5", "reason": "It is right."}]
    assert rubric.quiz == [
        {
            "prompt": "Capital of France?",
            "first": "Paris",
            "second": "Rome",
            "answer": -1,
            "feedback": "Paris is the capital.",
        }
    ]
    page = admin.get(f"{url}/2").text
    assert "Prefer <em>short</em> ones." in page
    assert "Paris is the capital." in page
    assert "The first one." in admin.get(f"{url}/1").text
    assert admin.get(f"{url}/3").status_code == 404


def test_switches_that_are_off_are_stored(sign_in: SignIn, session: Session, url: str) -> None:
    """A browser sends nothing for them."""
    sign_in("admin").post(url, fields(allow_tie=None, allow_both_bad=None, allow_cannot_judge=None))
    [draft] = drafts(session)
    assert (draft.allow_tie, draft.allow_both_bad, draft.allow_cannot_judge) == (False, False, False)


def test_a_conflict_shows_what_differs_and_saving_again_replaces(sign_in: SignIn, session: Session, url: str) -> None:
    ann, bob = sign_in(user=factories.user(session, "admin", name="Ann <b>")), sign_in("admin")
    ann.post(url, fields("Text from Ann"))
    answer = bob.post(f"{url}/publish", fields("Text from Bob"))
    assert answer.status_code == 409
    assert "Ann &lt;b&gt; changed this draft after you opened it." in answer.text
    assert "\nText from Bob</textarea>" in answer.text
    assert "Text from <del>Ann</del>" in answer.text
    assert "Text from <ins>Bob</ins>" in answer.text
    assert '<input type="hidden" name="revision" value="1">' in answer.text
    assert bob.post(url, fields("Text from Bob", revision=1)).status_code == 303


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        ({"guideline": " \n"}, "The guideline is empty."),
        ({"guideline": "x" * 50_001}, "The guideline has 50,001 characters; at most 50,000."),
        ({"strengths": "9"}, "The strengths cannot be “9”."),
        ({"rationale_rule": "sometimes"}, "The rationale rule cannot be “sometimes”."),
        ({"aspects": [("Ünïcode", "Which?")]}, "Aspect 1: the name may contain only a-z"),
        ({"aspects": [("a" * 41, "Which?")]}, "Aspect 1: the name may contain only a-z"),
        ({"aspects": [("fine", " ")]}, "Aspect 1: the question is empty."),
        ({"aspects": [("fine", "w" * 301)]}, "Aspect 1: the question has 301 characters; at most 300."),
        ({"aspects": [("style", "A?"), ("Style ", "B?")]}, "two have the same name: “style” and “style”."),
        ({"flags": [("a b", "A"), ("a_b", "B")]}, "two have the same name: “a b” and “a_b”."),
        ({"aspects": [(f"a{n}", "Which?") for n in range(200)]}, "200 are too many; at most 12."),
        ({"flags": [(f"a{n}", "Which?") for n in range(13)]}, "13 are too many; at most 12."),
        ({"examples": [("p", "b", "w", "")]}, "Example 1: the reason is empty."),
        ({"examples": [("p", "b" * 20_001, "w", "r")]}, "the better response has 20,001 characters; at most 20,000."),
        ({"examples": [("p", "b" * 19_000, "w", "r")] * 6}, "together they have 114,018 characters; at most 100,000."),
        ({"quiz": [("p", "a", "b", "", "f")]}, "Question 1: the right answer is not chosen."),
        ({"quiz": [("p", "a", "b", "7", "f")]}, "Question 1: the right answer cannot be “7”."),
        (
            {"quiz": [("p", "a", "b", "0", "f")], "allow_tie": None},
            "the right answer to quiz question 1 is a tie, but the scale has none.",
        ),
        ({"quiz": [QUESTION] * 51}, "51 are too many; at most 50."),
    ],
)
def test_what_cannot_be_accepted_comes_back_with_the_reason(
    sign_in: SignIn, session: Session, url: str, sent: dict[str, object], reason: str
) -> None:
    admin = sign_in("admin")

    def is_all_there(page: str) -> bool:
        typed = [text for value in sent.values() for text in (value[0] if isinstance(value, list) else [value]) if text]
        return all(html.escape(str(text).strip()) in page for text in typed)

    answer = admin.post(f"{url}/publish", fields(**sent))
    assert answer.status_code == 422
    assert reason in answer.text
    assert is_all_there(answer.text)
    assert drafts(session) == []

    answer = admin.post(url, fields(**sent))
    if sent.keys() & {"strengths", "rationale_rule"}:  # chosen, not typed: no draft either
        assert answer.status_code == 422
        assert reason in answer.text
    else:
        assert answer.status_code == 303
        page = admin.get(url).text
        assert is_all_there(page)
        assert reason.rstrip(".") in page, "the preview names what is missing"
        assert admin.get(f"{url}/diff?was=1").status_code == 200
        answer = admin.post(f"{url}/publish", fields(**sent) | {"revision": 1})
        assert answer.status_code == 422
    assert session.scalars(select(Rubric.version).where(Rubric.version.is_not(None))).all() == [1]


def test_a_draft_keeps_what_is_half_written(sign_in: SignIn, session: Session, url: str) -> None:
    """Complete rows are normalised; the others stay as typed."""
    admin = sign_in("admin")
    half = ("2 + 2?", "  4", "", "")
    sent = fields(
        "  ",
        aspects=[(" Style ", "Which?"), ("", "Unnamed?")],
        examples=[half],
        quiz=[("p", "", "", "1", ""), ("",) * 5],
    )
    assert admin.post(url, sent).status_code == 303
    [draft] = drafts(session)
    assert draft.examples == [{"prompt": "2 + 2?", "better": "  4", "worse": "", "reason": ""}]
    assert [aspect["question"] for aspect in draft.aspects] == ["Which?", "Unnamed?"]
    page = admin.get(url).text
    assert "\n  4</textarea>" in page
    assert '<option value="1" selected>Second is better</option>' in page
    assert "Example 1: the worse response is empty" in page
    assert page.count('name="quiz.prompt"') == 1
    whole = fields("Now.", aspects=[("style", "Which?")], examples=[EXAMPLE], quiz=[QUESTION], revision=1)
    assert admin.post(f"{url}/publish", whole).headers["location"] == f"{url}/2"


def test_a_megabyte_of_guideline_comes_back_whole(sign_in: SignIn, session: Session, url: str) -> None:
    admin, text = sign_in("admin"), "A very long guideline. " * 100_000  # 2.3 MB
    answer = admin.post(f"{url}/publish", fields(text))
    assert answer.status_code == 422
    assert "The guideline has 2,300,000 characters; at most 50,000." in answer.text
    assert text in answer.text
    assert drafts(session) == []
    assert admin.post(url, fields(text)).status_code == 303
    assert text.strip() in admin.get(url).text
    far_too_much = text * 3
    answer = admin.post(url, fields(far_too_much, revision=1))
    assert answer.status_code == 422
    assert "The whole draft has 6,900,0" in answer.text
    assert far_too_much in answer.text
    assert drafts(session)[0].guideline == text


@pytest.mark.parametrize("nothing", ["\u200b", "\u2060\ufeff\u202e", "\u200b \n\t"])
def test_what_cannot_be_seen_is_no_text(sign_in: SignIn, url: str, nothing: str) -> None:
    sent = fields(nothing, flags=[("harmful", nothing)], examples=[(nothing, "4", "5", nothing)])
    answer = sign_in("admin").post(f"{url}/publish", sent)
    assert answer.status_code == 422
    for field in ("The guideline", "Flag 1: the label", "Example 1: the prompt", "Example 1: the reason"):
        assert f"{field} is empty." in answer.text


def test_rows_left_empty_do_not_count(sign_in: SignIn, session: Session, url: str) -> None:
    rows = [("", ""), ("style", "Which is better written?"), ("  ", "")]
    assert sign_in("admin").post(url, fields(aspects=rows, quiz=[("", "", "", "", "")])).status_code == 303
    [draft] = drafts(session)
    assert [aspect["name"] for aspect in draft.aspects] == ["style"]
    assert draft.quiz == []


def test_names_are_brought_into_form(sign_in: SignIn, session: Session, url: str) -> None:
    sign_in("admin").post(url, fields(aspects=[("  Personal   Data ", " Which is\u00a0more private? ")]))
    [draft] = drafts(session)
    assert draft.aspects == [{"name": "personal data", "question": "Which is\u00a0more private?"}]


def test_line_ends_and_nul_characters(sign_in: SignIn, session: Session, url: str) -> None:
    sent = fields("One\r\ntwo\0", examples=[("a\r\nb", "  code\r\n  more", "\0w", "r")])
    sign_in("admin").post(url, sent)
    [draft] = drafts(session)
    assert draft.guideline == "One\ntwo\n"
    assert draft.examples == [{"prompt": "a\nb", "better": "  code\n  more", "worse": "w", "reason": "r"}]


HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>\u202e</textarea>\"'>"


def test_hostile_text_is_shown_as_text(sign_in: SignIn, session: Session, url: str) -> None:
    admin = sign_in(user=factories.user(session, "admin", name=HOSTILE))
    sent = fields(
        HOSTILE,
        aspects=[("style", HOSTILE)],
        flags=[("harmful", HOSTILE)],
        examples=[(HOSTILE,) * 4],
        quiz=[(HOSTILE, HOSTILE, HOSTILE, "1", HOSTILE)],
    )
    assert admin.post(url, sent).status_code == 303
    pages = [admin.get(url), admin.get(f"{url}/diff?was=1"), admin.post(f"{url}/edit", sent | {"do": "quiz.remove.0"})]
    assert admin.post(f"{url}/publish", sent | {"revision": 1}).status_code == 303
    pages += [admin.get(url), admin.get(f"{url}/2"), admin.get(f"{url}/diff?was=1&now=2")]
    for page in pages:
        assert page.status_code == 200
        body = page.text.replace('<script src="/static', "")
        assert "<script" not in body
        assert "<img" not in body
        assert page.text.count("<textarea") == page.text.count("</textarea>")


def test_the_preview_stores_nothing_and_says_what_is_missing(sign_in: SignIn, session: Session, url: str) -> None:
    admin = sign_in("admin")
    answer = admin.post(f"{url}/preview", fields("<script>alert(1)</script> **bold**", strengths="2"))
    assert "<strong>bold</strong>" in answer.text
    assert "<script" not in answer.text
    assert "Not complete yet" not in answer.text
    assert len(re.findall(r'name="preference" value="-?[0-2]"', answer.text)) == 5  # two each way and a tie
    answer = admin.post(f"{url}/preview", fields("", examples=[("p", "b", "", "")]))
    assert answer.status_code == 200
    assert "Not complete yet" in answer.text
    assert "The guideline is empty." in answer.text
    assert "Example 1: the worse response is empty." in answer.text
    assert drafts(session) == []


def test_rows_are_edited_by_posting(sign_in: SignIn, session: Session, url: str) -> None:
    """Without JavaScript, each button responds with the page; nothing is stored, and no typed text is lost."""
    admin = sign_in("admin")
    typed = fields("Typed but not saved.", flags=[("harmful", "Harmful")])

    def after(do: str, **more: object) -> str:
        answer = admin.post(f"{url}/edit", typed | {"do": do} | more)
        assert answer.status_code == 200
        assert "Typed but not saved." in answer.text
        assert 'value="harmful"' in answer.text
        return answer.text

    def names(page: str) -> list[str]:
        return re.findall(r'name="aspects.name" value="([^"]*)"', page)

    assert names(after("aspects.add")) == ["factuality", "style", ""]
    assert 'id="aspects-2-name" name="aspects.name" value="" dir="auto" autocomplete="off" autofocus' in after(
        "aspects.add"
    )
    assert names(after("aspects.down.0")) == ["style", "factuality"]
    assert names(after("aspects.up.1")) == ["style", "factuality"]
    removed = after("aspects.remove.0")
    assert names(removed) == ["style"]
    assert "Put it back" in removed
    hidden = dict(re.findall(r'name="(removed\.aspects\.\w+)" value="([^"]*)"', removed))
    assert hidden["removed.aspects.question"] == "Which is more accurate?"
    back = admin.post(f"{url}/edit", typed | fields(aspects=[("style", "Which?")]) | hidden | {"do": "aspects.restore"})
    assert names(back.text) == ["factuality", "style"]
    for nonsense in ("", "aspects", "aspects.up.0", "aspects.up.99", "aspects.remove.x", "nothing.add", "aspects.x.0"):
        assert names(after(nonsense)) == ["factuality", "style"]
    for nonsense in ("aspects.restore", f"aspects.remove.{'9' * 5000}", "scale.3.tie"):
        assert names(after(nonsense)) == ["factuality", "style"]
    assert drafts(session) == []
    assert admin.get(f"{url}/edit").headers["location"] == url


def test_a_scale_by_its_name(sign_in: SignIn, url: str) -> None:
    answer = sign_in("admin").post(f"{url}/edit", fields() | {"do": "scale.4.no"})
    assert '<option value="4" selected>' in answer.text
    assert 'name="allow_tie" value="true">' in answer.text  # not checked
    assert len(re.findall(r'name="preference" value="-?[1-4]"', answer.text)) == 8


def test_htmx_gets_the_section(sign_in: SignIn, url: str) -> None:
    answer = sign_in("admin").post(f"{url}/edit", fields() | {"do": "aspects.add"}, headers={"HX-Request": "true"})
    assert "<html" not in answer.text
    assert 'id="section-aspects"' in answer.text
    assert 'id="section-flags"' not in answer.text


def test_what_changed_between_two_versions(sign_in: SignIn, url: str) -> None:
    admin = sign_in("admin")
    admin.post(f"{url}/publish", fields("The first one.\n\nAnd more.", flags=[("harmful", "Harmful")], strengths="1"))
    page = admin.get(f"{url}/diff?was=1&now=2").text
    assert "From version 1 to version 2" in page
    assert "And more." in page
    assert "Flag “harmful”" in page
    assert "Strengths each way" in page
    admin.post(url, fields("A draft."))
    assert "From version 2 to the draft" in admin.get(f"{url}/diff?was=2&now=draft").text
    assert "The two texts are the same." in admin.get(f"{url}/diff?was=2&now=2").text
    for nonsense in ("was=9&now=1", "was=x&now=1", f"was={'9' * 5000}&now=1", ""):
        assert admin.get(f"{url}/diff?{nonsense}").status_code == 404


def test_after_publishing_items_can_be_asked_again(
    sign_in: SignIn, session: Session, project: Project, url: str
) -> None:
    admin = sign_in("admin")
    admin.post(f"{url}/publish", fields("Nothing was judged yet."))
    assert "Ask again" not in admin.get(f"{url}/2").text
    factories.judgment(session, factories.comparison(session, project), preference=1)
    session.commit()
    admin.post(f"{url}/publish", fields("Now something was.", quiz=[QUESTION]))
    rubric = session.scalars(select(Rubric).where(Rubric.version == 3)).one()
    page = admin.get(f"{url}/3").text
    assert f'href="/projects/{project.slug}/review/relabel?rubric={rubric.id}"' in page
    assert "1 judgment was made under earlier versions" in page
    assert "The quiz is new" in page
    assert "Ask again" not in admin.get(f"{url}/2").text, "only for the version in force"


def test_whether_the_quiz_is_taken_again_is_chosen(sign_in: SignIn, session: Session, url: str) -> None:
    admin = sign_in("admin")
    assert 'name="retake"' not in admin.get(url).text, "there was no quiz yet"
    admin.post(f"{url}/publish", fields("One.", quiz=[QUESTION]))
    assert '<option value="changed" selected>' in admin.get(url).text
    refused = admin.post(f"{url}/publish", fields("", quiz=[QUESTION], retake="no")).text
    assert '<option value="no" selected>' in refused
    mended = [("Captial of France?", *QUESTION[1:])]
    for retake, quiz, counts_as in (("changed", mended, 2), ("yes", mended, None), ("nonsense", [QUESTION], 4)):
        answer = admin.post(f"{url}/publish", fields(f"{retake}.", quiz=quiz, retake=retake))
        assert answer.status_code == 303
        newest = select(Rubric).order_by(Rubric.id.desc()).limit(1)
        session.rollback()
        assert session.scalars(newest).one().quiz_of_version == counts_as
        page = admin.get(answer.headers["location"]).text
        if retake == "changed":
            assert "who passed it under version 2 need not take it again" in page
        elif retake == "yes":
            assert "Labelers must take the quiz again" in page


def test_a_draft_published_in_another_tab(sign_in: SignIn, session: Session, url: str) -> None:
    """Later typing is still there, on top of the version, with the differences."""
    admin = sign_in("admin")
    admin.post(url, fields("The second one."))
    admin.post(f"{url}/publish", fields("The second one.", revision=1))
    answer = admin.post(url, fields("The third one.", revision=1))
    assert answer.status_code == 409
    assert "published or discarded by somebody else" in answer.text
    assert "From version 2 to yours" in answer.text
    assert "The <ins>third</ins> one." in answer.text
    assert admin.post(url, fields("The third one.", revision=0)).status_code == 303

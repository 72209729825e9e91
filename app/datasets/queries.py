"""SQL of import and export."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Text,
    any_,
    case,
    func,
    insert,
    literal,
    or_,
    select,
    true,
    update,
)
from sqlalchemy import text as sql
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.orm import Session, aliased

from app.datasets.checking import Known, Said, Scale, StoredPair
from app.datasets.records import Labeler, ThumbKey, text_digest
from app.db import among
from app.models import (
    Adjudication,
    Comparison,
    Completion,
    Demonstration,
    Judgment,
    Project,
    ProjectLabeler,
    Prompt,
    Rubric,
    Thumb,
    User,
)
from app.models.prompt import WITHDRAWN

CHUNK = 5000  # rows per statement, so that progress can be shown


def project_by_slug(session: Session, slug: str) -> Project | None:
    return session.scalars(select(Project).where(Project.slug == slug)).one_or_none()


def lock_project(session: Session, project_id: int) -> None:
    """Lock out other imports until the transaction ends. With a key share lock, others can still add rows to the
    project."""
    session.execute(select(Project.id).where(Project.id == project_id).with_for_update(key_share=True))


def known(session: Session, project_id: int) -> Known:
    """Return what the project already holds of the kinds that imports bring."""
    splits = select(Prompt.digest, Prompt.split).where(Prompt.project_id == project_id)
    imported = (Comparison.project_id == project_id, Comparison.digest.is_not(None))
    columns = select(Comparison.digest, Comparison.id, Comparison.rubric_id, Comparison.gold, Comparison.external_id)
    comparisons = session.execute(columns.where(*imported))
    judgments = (
        select(Comparison.digest, User.name, User.kind, Judgment.preference, Judgment.rationale, Judgment.aspects)
        .join(Judgment, Judgment.comparison_id == Comparison.id)
        .join(User, User.id == Judgment.labeler_id)
        .where(*imported, *_came_with_data())
        .where(or_(Judgment.superseded_at.is_(None), Judgment.superseded_for == "relabeled"))
        .order_by(Judgment.superseded_at.is_(None))  # live judgments are read last, so they win
    )
    found = Known(prompt_splits=dict(session.execute(splits).all()))
    versions = select(Rubric).where(Rubric.project_id == project_id, Rubric.version.is_not(None))
    for rubric in session.scalars(versions):
        aspects = [str(aspect["name"]) for aspect in rubric.aspects]
        found.scales[rubric.id] = Scale(rubric.strengths, rubric.allow_tie, aspects)
    by_pair_id: defaultdict[str, list[str]] = defaultdict(list)
    for digest, id_, rubric_id, gold, external_id in comparisons:
        assert digest is not None  # ensured by the query's condition
        found.comparisons[digest] = StoredPair(id_, rubric_id, gold)
        if external_id is not None:
            by_pair_id[external_id].append(digest)
    found.by_pair_id = dict(by_pair_id)
    gone = select(User.name, User.kind).join(ProjectLabeler, ProjectLabeler.labeler_id == User.id)
    gone = gone.where(ProjectLabeler.project_id == project_id, ProjectLabeler.state == "removed", *_came_with_data())
    found.removed = {Labeler(name, kind) for name, kind in session.execute(gone)}
    demonstrations = select(Prompt.digest, Demonstration.digest).join(Prompt, Prompt.id == Demonstration.prompt_id)
    found.demonstrations = {
        (prompt, text) for prompt, text in session.execute(demonstrations.where(Demonstration.project_id == project_id))
    }
    thumbs = (
        select(Prompt.digest, Completion.text, User.name, User.kind, Thumb.liked)
        .join(Completion, Completion.id == Thumb.completion_id)
        .join(Prompt, Prompt.id == Completion.prompt_id)
        .join(User, User.id == Thumb.labeler_id)
        .where(Thumb.project_id == project_id, *_came_with_data(), Thumb.superseded_at.is_(None))
    )
    found.thumbs = {
        ThumbKey(prompt, text_digest(said), Labeler(name, kind)): liked
        for prompt, said, name, kind, liked in session.execute(thumbs)
    }
    found.judgments = {
        (str(digest), Labeler(name, kind)): Said(said, rationale, aspects)
        for digest, name, kind, said, rationale, aspects in session.execute(judgments)
        if said is not None
    }
    return found


def _came_with_data() -> tuple[ColumnElement[bool], ...]:
    """Conditions on labelers that an import made: a data set's people, and AI judges; none of them can sign in."""
    return User.kind.in_(("imported", "ai_judge")), User.email.is_(None)


class StoredPrompt(NamedTuple):
    id: int
    split: str
    domain: str
    difficulty: str
    safety_category: str | None


def prompts_by_digest(session: Session, project_id: int, digests: Sequence[str]) -> dict[str, StoredPrompt]:
    """Return prompts of the project, by digest."""
    wanted = Prompt.digest == any_(literal(list(digests), ARRAY(Text)))
    columns = [getattr(Prompt, name) for name in StoredPrompt._fields]
    found = select(Prompt.digest, *columns).where(Prompt.project_id == project_id, wanted)
    return {row.digest: StoredPrompt._make(row[1:]) for row in session.execute(found)}


def imported_completions(session: Session, prompt_ids: Sequence[int]) -> Iterator[tuple[tuple[int, str, str], int]]:
    """Yield ((prompt id, source, text), id) of these prompts' completions that no model of ours sampled."""
    wanted = among(Completion.prompt_id, prompt_ids)
    found = select(Completion.prompt_id, Completion.source, Completion.text, Completion.id).where(
        wanted, Completion.model_version_id.is_(None), Completion.run_id.is_(None)
    )
    for prompt_id, source, text, id_ in session.execute(found.order_by(Completion.id)):
        yield (prompt_id, source, text), id_


def imported_labelers(session: Session, project_id: int) -> dict[Labeler, int]:
    """Return ids of the imported labelers who have judged or given thumbs in this project."""
    judged = (
        select(Judgment.labeler_id)
        .join(Comparison, Comparison.id == Judgment.comparison_id)
        .where(Comparison.project_id == project_id)
    )
    thumbs = select(Thumb.labeler_id).where(Thumb.project_id == project_id)
    found = select(User.name, User.kind, User.id).where(*_came_with_data(), User.id.in_(judged.union(thumbs)))
    return {Labeler(name, kind): id_ for name, kind, id_ in session.execute(found)}


def add_rows(session: Session, table: type[Any], rows: Sequence[dict[str, Any]]) -> list[int]:
    """Insert rows; return their ids in the same order."""
    if not rows:
        return []
    return list(session.scalars(insert(table).returning(table.id, sort_by_parameter_order=True), rows))


def overlaps(session: Session, ids: Sequence[int]) -> dict[int, int]:
    """Return the overlap of these comparisons, by id."""
    found = select(Comparison.id, Comparison.overlap).where(among(Comparison.id, ids))
    return dict(session.execute(found).all())


def make_room(session: Session, wanted: dict[int, int]) -> None:
    """Raise comparisons' overlap for this many more judgments, by id, and reopen settled ones so that they settle
    again."""
    ids, more = literal(list(wanted), ARRAY(BigInteger)), literal(list(wanted.values()), ARRAY(BigInteger))
    asked = func.unnest(ids, more).table_valued("id", "more", name="asked").render_derived()
    settled = Comparison.state.in_(("settled", "in_review"))
    session.execute(
        update(Comparison)
        .where(Comparison.id == asked.c.id)
        .values(
            overlap=func.greatest(
                Comparison.overlap, Comparison.judgment_count + Comparison.lease_count + asked.c.more
            ),
            state=case((settled, "open"), else_=Comparison.state),
            settled_at=case((settled, None), else_=Comparison.settled_at),
        )
        .execution_options(synchronize_session=False)
    )


def states(session: Session, project_id: int) -> dict[str, int]:
    """Count comparisons by state."""
    found = select(Comparison.state, func.count()).where(Comparison.project_id == project_id)
    return dict(session.execute(found.group_by(Comparison.state)).all())


def demonstrations(session: Session, project_id: int) -> dict[str, int]:
    """Count demonstrations by review state."""
    found = select(Demonstration.state, func.count()).where(Demonstration.project_id == project_id)
    return dict(session.execute(found.group_by(Demonstration.state)).all())


def thumbs(session: Session, project_id: int) -> int:
    """Count live thumbs."""
    found = select(func.count()).where(Thumb.project_id == project_id, Thumb.superseded_at.is_(None))
    return session.scalar(found) or 0


def heldout(session: Session, project_id: int) -> int:
    """Count prompts that are held out."""
    found = select(func.count()).where(Prompt.project_id == project_id, Prompt.split == "heldout")
    return session.scalar(found) or 0


class ExportRow(NamedTuple):
    """A decided comparison with its live judgments that have a preference, in the order they were given.

    consensus, p_b, p_tie: as stored (app.domain.consensus); None if the comparison was never fitted.
    """

    comparison_id: int
    prompt_id: int
    messages: list[dict[str, str]]
    domain: str
    difficulty: str
    safety_category: str | None
    split: str
    response_a: str
    response_b: str
    verdict: int | None
    preferences: list[int]
    judgment_ids: list[int]
    consensus: float | None
    p_b: float | None
    p_tie: float | None
    ai_revised_a: bool
    ai_revised_b: bool


AT_ONCE = 1000  # rows of an export fetched together
DECIDED = ("settled", "adjudicated")


# These measure labelers or policies: a training file must not contain the data that evaluates the result.
MEASURING = ("repeat", "human_eval")


def _exported(project_id: int, split: str, states: Sequence[str]) -> tuple[ColumnElement[bool], ...]:
    return *_of_split(project_id, split, states), Comparison.purpose.not_in(MEASURING)


def _of_split(project_id: int, split: str, states: Sequence[str]) -> tuple[ColumnElement[bool], ...]:
    wanted = (Comparison.project_id == project_id, Comparison.state.in_(states))
    return wanted if split == "all" else (*wanted, Prompt.split == split)


def has_ai_revised(session: Session, project_id: int) -> bool:
    """Tell whether an AI critic wrote any response or demonstration of the project."""
    of_project = Prompt.project_id == project_id
    response = select(Completion.id).join(Prompt, Prompt.id == Completion.prompt_id)
    response = response.where(of_project, Completion.ai_revised).limit(1)
    written = select(Demonstration.id).where(Demonstration.project_id == project_id, Demonstration.ai_revised).limit(1)
    return session.scalar(response) is not None or session.scalar(written) is not None


class ExportTotals(NamedTuple):
    """decided, undecided: how many comparisons are decided, and how many are open or in review. evaluating: how many
    decided ones evaluate a policy, so they are left out."""

    decided: int
    undecided: int
    evaluating: int


def export_totals(session: Session, project_id: int, split: str) -> ExportTotals:
    wanted = (
        _exported(project_id, split, DECIDED),
        _exported(project_id, split, ("open", "in_review")),
        (*_of_split(project_id, split, DECIDED), Comparison.purpose == "human_eval"),
    )
    counts = [
        select(func.count()).select_from(Comparison).join(Prompt, Prompt.id == Comparison.prompt_id).where(*each)
        for each in wanted
    ]
    return ExportTotals(*(session.scalar(count) or 0 for count in counts))


def export_rows(session: Session, project_id: int, split: str) -> Iterator[ExportRow]:
    """Yield decided comparisons by id, fetched while they are read."""
    completion_a, completion_b = aliased(Completion), aliased(Completion)
    judged = (
        select(
            func.array_agg(aggregate_order_by(Judgment.preference, Judgment.id)).label("preferences"),
            func.array_agg(aggregate_order_by(Judgment.id, Judgment.id)).label("ids"),
        )
        .where(
            Judgment.comparison_id == Comparison.id,
            Judgment.superseded_at.is_(None),
            Judgment.preference.is_not(None),
        )
        .lateral()
    )
    found = (
        select(
            Comparison.id,
            Comparison.prompt_id,
            Prompt.messages,
            Prompt.domain,
            Prompt.difficulty,
            Prompt.safety_category,
            Prompt.split,
            completion_a.text,
            completion_b.text,
            Adjudication.verdict,
            judged.c.preferences,
            judged.c.ids,
            Comparison.consensus,
            Comparison.p_b,
            Comparison.p_tie,
            completion_a.ai_revised,
            completion_b.ai_revised,
        )
        .join(Prompt, Prompt.id == Comparison.prompt_id)
        .join(completion_a, completion_a.id == Comparison.completion_a_id)
        .join(completion_b, completion_b.id == Comparison.completion_b_id)
        .join(judged, true())
        .outerjoin(Adjudication, Adjudication.comparison_id == Comparison.id)
        .where(*_exported(project_id, split, DECIDED))
        .order_by(Comparison.id)
        .execution_options(yield_per=AT_ONCE)
    )
    for row in session.execute(found):
        exported = ExportRow(*row)
        # An aggregate over no rows is NULL, not an empty array.
        yield exported._replace(preferences=exported.preferences or [], judgment_ids=exported.judgment_ids or [])


class ExportedDemonstration(NamedTuple):
    """An approved demonstration with its prompt."""

    demonstration_id: int
    prompt_id: int
    messages: list[dict[str, str]]
    domain: str
    difficulty: str
    safety_category: str | None
    split: str
    text: str
    ai_revised: bool


def exported_demonstrations(session: Session, project_id: int, split: str) -> Iterator[ExportedDemonstration]:
    found = (
        select(
            Demonstration.id,
            Demonstration.prompt_id,
            Prompt.messages,
            Prompt.domain,
            Prompt.difficulty,
            Prompt.safety_category,
            Prompt.split,
            Demonstration.text,
            Demonstration.ai_revised,
        )
        .join(Prompt, Prompt.id == Demonstration.prompt_id)
        .where(Demonstration.project_id == project_id, Demonstration.state == "approved", Prompt.split != WITHDRAWN)
        .order_by(Demonstration.id)
        .execution_options(yield_per=AT_ONCE)
    )
    for row in session.execute(found if split == "all" else found.where(Prompt.split == split)):
        yield ExportedDemonstration(*row)


class ExportedThumb(NamedTuple):
    """A response with its live thumbs."""

    response_id: int
    prompt_id: int
    messages: list[dict[str, str]]
    domain: str
    difficulty: str
    safety_category: str | None
    split: str
    text: str
    up: int
    down: int
    thumb_ids: list[int]
    ai_revised: bool


def exported_thumbs(session: Session, project_id: int, split: str) -> Iterator[ExportedThumb]:
    """Yield responses with thumbs, in the order of each one's first thumb."""
    of_response = (
        select(
            Thumb.completion_id,
            func.count().filter(Thumb.liked).label("up"),
            func.count().filter(~Thumb.liked).label("down"),
            func.array_agg(aggregate_order_by(Thumb.id, Thumb.id)).label("ids"),
            func.min(Thumb.id).label("first"),
        )
        .where(Thumb.project_id == project_id, Thumb.superseded_at.is_(None))
        .group_by(Thumb.completion_id)
        .subquery()
    )
    found = (
        select(
            Completion.id,
            Completion.prompt_id,
            Prompt.messages,
            Prompt.domain,
            Prompt.difficulty,
            Prompt.safety_category,
            Prompt.split,
            Completion.text,
            of_response.c.up,
            of_response.c.down,
            of_response.c.ids,
            Completion.ai_revised,
        )
        .join(of_response, of_response.c.completion_id == Completion.id)
        .join(Prompt, Prompt.id == Completion.prompt_id)
        .where(Prompt.split != WITHDRAWN)
        .order_by(of_response.c.first)
        .execution_options(yield_per=AT_ONCE)
    )
    for row in session.execute(found if split == "all" else found.where(Prompt.split == split)):
        yield ExportedThumb(*row)


class Holdings(NamedTuple):
    """Counts of what a project holds."""

    prompts: dict[str, int]  # by split
    completions: int
    comparisons: dict[str, int]  # by state
    judgments: int  # live
    labelers: int
    demonstrations: dict[str, int]  # by review state
    thumbs: int  # live


def holdings(session: Session, project_id: int) -> Holdings:
    prompts = select(Prompt.split, func.count()).where(Prompt.project_id == project_id).group_by(Prompt.split)
    completions = select(func.count()).select_from(Completion).join(Prompt, Prompt.id == Completion.prompt_id)
    judged = (
        select(func.count(), func.count(Judgment.labeler_id.distinct()))
        .join(Comparison, Comparison.id == Judgment.comparison_id)
        .where(Comparison.project_id == project_id, Comparison.state != "withdrawn", Judgment.superseded_at.is_(None))
    )
    judgments, labelers = session.execute(judged).one()
    return Holdings(
        prompts=dict(session.execute(prompts).all()),
        completions=session.scalar(completions.where(Prompt.project_id == project_id)) or 0,
        comparisons=states(session, project_id),
        judgments=judgments,
        labelers=labelers,
        demonstrations=demonstrations(session, project_id),
        thumbs=thumbs(session, project_id),
    )


MANY = 1000  # refresh the planner's statistics if more rows than this were added


def refresh_statistics(session: Session, added: int) -> None:
    """Refresh the planner's statistics after many rows were added. Autovacuum does so only a minute later, and until
    then pages plan for almost no rows: Labelers took half a minute for 40,000 judgments."""
    if added > MANY:
        for table in ("prompt", "completion", "comparison", "judgment"):
            session.execute(sql(f"ANALYZE {table}"))

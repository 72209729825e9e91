"""Writing a checked import to the tables, in bulk."""

from collections import defaultdict
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy.orm import Session

from app.datasets import queries
from app.datasets.checking import Checked, Known, StoredPair, Vote
from app.datasets.reading import Progress
from app.datasets.records import Labeler, PairRecord
from app.documents import LabelingSettings
from app.domain.overlap import Overlap
from app.labeling import settling
from app.labeling.opening import wanted as overlap_of
from app.models import Comparison, Completion, Demonstration, Judgment, Project, Ranking, Rubric, Thumb, User

# In all other splits, prompts and their comparisons are never trained on.
RANKING_SIZES = range(3, 10)  # as the table's check allows
PURPOSE = {"train": "train", "calibration": "calibration"}


class Written(NamedTuple):
    """Ids of added rows, and the number of new labelers.

    overlaps: for each comparison that existed before and got judgments, its overlap before the import, by id.
    """

    comparisons: list[int]
    judgments: list[int]
    demonstrations: list[int]
    thumbs: list[int]
    labelers: int
    overlaps: dict[int, int]


def write(
    session: Session, project: Project, rubric: Rubric, checked: Checked, known: Known, progress: Progress
) -> Written:
    """Add the new pairs, votes, demonstrations and thumbs; settle the comparisons that they complete.

    Their prompts must exist already.
    """
    votes: defaultdict[str, list[Vote]] = defaultdict(list)
    for (digest, _), vote in checked.votes.items():
        votes[digest].append(vote)
    stored = dict(known.comparisons)
    more = {stored[digest].id: len(on) for digest, on in votes.items() if digest in stored}
    overlaps = queries.overlaps(session, list(more))
    queries.make_room(session, more)
    new = [digest for digest in checked.pairs if digest not in stored]
    stored |= _add_comparisons(session, project, rubric, checked, new, votes, progress)
    who = {labeler for _, labeler in checked.votes} | {key.labeler for key in checked.thumbs}
    labelers, n_labelers = _labelers(session, project, who)
    now = datetime.now(UTC)
    rows = [
        {
            "comparison_id": stored[digest].id,
            "rubric_id": stored[digest].rubric_id,
            "labeler_id": labelers[labeler],
            "preference": vote.preference,
            "aspects": vote.aspects,
            "rationale": vote.record.rationale,
            "duration_ms": vote.record.duration_ms,
            "created_at": vote.record.submitted_at or now,
        }
        for (digest, labeler), vote in checked.votes.items()
    ]
    judgments = _add(session, Judgment, rows, progress)
    settling.settle(session, [stored[digest].id for digest in votes])
    demonstrations = _add_demonstrations(session, project, checked, progress)
    thumbs = _add_thumbs(session, project, checked, labelers, progress)
    return Written([stored[digest].id for digest in new], judgments, demonstrations, thumbs, n_labelers, overlaps)


def _add_demonstrations(session: Session, project: Project, checked: Checked, progress: Progress) -> list[int]:
    """Add demonstrations as approved, because somebody chose to import them."""
    prompts = queries.prompts_by_digest(session, project.id, list({digest for digest, _ in checked.demonstrations}))
    rows = [
        {
            "project_id": project.id,
            "prompt_id": prompts[prompt].id,
            "text": demonstration.text,
            "digest": digest,
            "source": demonstration.source,
            "state": "approved",
        }
        for (prompt, digest), demonstration in checked.demonstrations.items()
    ]
    return _add(session, Demonstration, rows, progress)


def _add_thumbs(
    session: Session, project: Project, checked: Checked, labelers: dict[Labeler, int], progress: Progress
) -> list[int]:
    prompts = queries.prompts_by_digest(session, project.id, list({key.prompt for key in checked.thumbs}))
    wanted = [(prompts[key.prompt].id, thumb.source, thumb.text) for key, thumb in checked.thumbs.items()]
    rows = [
        {
            "project_id": project.id,
            "completion_id": completion_id,
            "labeler_id": labelers[thumb.labeler],
            "liked": thumb.liked,
            "rationale": thumb.rationale,
        }
        for completion_id, thumb in zip(
            _single_completions(session, wanted, progress), checked.thumbs.values(), strict=True
        )
    ]
    return _add(session, Thumb, rows, progress)


def _add_comparisons(
    session: Session,
    project: Project,
    rubric: Rubric,
    checked: Checked,
    digests: list[str],
    votes: dict[str, list[Vote]],
    progress: Progress,
) -> dict[str, StoredPair]:
    pairs = [checked.pairs[digest] for digest in digests]
    prompts = queries.prompts_by_digest(session, project.id, list({pair.prompt.digest for pair in pairs}))
    prompt_of = [prompts[pair.prompt.digest] for pair in pairs]
    wanted = [
        ((prompt.id, pair.source_a, pair.response_a), (prompt.id, pair.source_b, pair.response_b))
        for prompt, pair in zip(prompt_of, pairs, strict=True)
    ]
    completions = _completions(session, wanted, progress)
    settings = LabelingSettings.model_validate(project.labeling)
    purposes = [
        "calibration" if pair.gold is not None else PURPOSE.get(prompt.split, "heldout")
        for pair, prompt in zip(pairs, prompt_of, strict=True)
    ]
    asked = [
        Overlap(len(votes[digest])) if votes[digest] else overlap_of(project, settings, prompt, purpose, digest)
        for digest, prompt, purpose in zip(digests, prompt_of, purposes, strict=True)
    ]
    rankings = _rankings(session, project, [(prompt.id, pair) for prompt, pair in zip(prompt_of, pairs, strict=True)])
    # Labelers are offered a ranking's first pair; their answer covers all its pairs.
    first = {ranking: n for n, ranking in reversed(list(enumerate(rankings)))}
    rows = [
        {
            "project_id": project.id,
            "prompt_id": prompt.id,
            "completion_a_id": a,
            "completion_b_id": b,
            "rubric_id": rubric.id,
            "purpose": purpose,
            "overlap": overlap.overlap,
            "overlap_max": None if pair.gold is not None else overlap.most,
            "gold": pair.gold,
            "external_id": pair.pair_id,
            "digest": digest,
            "ranking_id": ranking,
            "offered": ranking is None or first[ranking] == n,
        }
        for n, (digest, pair, prompt, (a, b), purpose, overlap, ranking) in enumerate(
            zip(digests, pairs, prompt_of, completions, purposes, asked, rankings, strict=True)
        )
    ]
    ids = _add(session, Comparison, rows, progress)
    return {digest: StoredPair(id_, rubric.id) for digest, id_ in zip(digests, ids, strict=True)}


def _rankings(session: Session, project: Project, pairs: list[tuple[int, PairRecord]]) -> list[int | None]:
    """Return the ranking of each pair, given with its prompt's id; create rankings whose pairs are all new.

    This way training counts the pairs of k responses as one judgment of k responses, not as k (k - 1) / 2 separate
    ones.
    """
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for n, (_, pair) in enumerate(pairs):
        if pair.ranking is not None:
            groups[pair.ranking].append(n)
    whole = []
    for places in groups.values():
        size = len({text for n in places for text in (pairs[n][1].response_a, pairs[n][1].response_b)})
        if size in RANKING_SIZES and len(places) == size * (size - 1) // 2:
            whole.append((size, places))
    rows = [{"project_id": project.id, "prompt_id": pairs[places[0]][0], "size": size} for size, places in whole]
    found: list[int | None] = [None] * len(pairs)
    for id_, (_, places) in zip(queries.add_rows(session, Ranking, rows), whole, strict=True):
        for n in places:
            found[n] = id_
    return found


CompletionKey = tuple[int, str, str]  # prompt id, source, text


def _completions(
    session: Session, wanted: list[tuple[CompletionKey, CompletionKey]], progress: Progress
) -> list[tuple[int, int]]:
    """Return ids of both completions of each pair.

    The same text from the same source is one completion, unless a pair contains it twice.
    """
    have: defaultdict[CompletionKey, list[int]] = defaultdict(list)
    for key, id_ in queries.imported_completions(session, list({a[0] for a, _ in wanted})):
        have[key].append(id_)
    needed = {key: 1 for pair in wanted for key in pair} | {a: 2 for a, b in wanted if a == b}
    missing = [key for key, n in needed.items() for _ in range(n - len(have[key]))]
    rows = [{"prompt_id": prompt_id, "source": source, "text": text} for prompt_id, source, text in missing]
    for key, id_ in zip(missing, _add(session, Completion, rows, progress), strict=True):
        have[key].append(id_)
    return [(have[a][0], have[b][1 if a == b else 0]) for a, b in wanted]


def _single_completions(session: Session, wanted: list[CompletionKey], progress: Progress) -> list[int]:
    """Return ids of the completions. The same text from the same source is one completion."""
    have = dict(queries.imported_completions(session, list({key[0] for key in wanted})))
    missing = [key for key in dict.fromkeys(wanted) if key not in have]
    rows = [{"prompt_id": prompt_id, "source": source, "text": text} for prompt_id, source, text in missing]
    have |= dict(zip(missing, _add(session, Completion, rows, progress), strict=True))
    return [have[key] for key in wanted]


def _labelers(session: Session, project: Project, wanted: set[Labeler]) -> tuple[dict[Labeler, int], int]:
    """Return ids by name and kind, and how many are new. Labelers of the same name in other projects are not reused."""
    labelers = queries.imported_labelers(session, project.id)
    new = sorted(wanted - labelers.keys())
    rows = [{"name": labeler.name, "kind": labeler.kind} for labeler in new]
    ids = queries.add_rows(session, User, rows)
    return labelers | dict(zip(new, ids, strict=True)), len(new)


def _add(session: Session, table: type[Any], rows: list[dict[str, Any]], progress: Progress) -> list[int]:
    ids: list[int] = []
    for start in range(0, len(rows), queries.CHUNK):
        ids += queries.add_rows(session, table, rows[start : start + queries.CHUNK])
        progress(f"writing {table.__tablename__}s", len(ids), len(rows))
    return ids

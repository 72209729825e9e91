"""Samples return to the queue: stored once, asked once, each kind of prompt for its purpose."""

from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.domain.consensus import majority
from app.domain.pairing import POLICIES
from app.errors import Conflict
from app.labeling import assigning
from app.models import Comparison, Completion, Project, Round, Run
from app.rounds import outcomes, queries, result_queries, service
from app.rounds.service import NewSample, store_samples
from app.rounds.stages import Maker
from app.settings import SamplingServer
from app.specs import SampleSpec
from tests import factories
from tests.rounds.loop import GENERATION, config, decided, new_samples


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


@pytest.fixture
def project(session: Session) -> Project:
    # Of three pairs two are with the older policy, where there is one.
    labeling = {"pairs": {"random": 1, "new_against_old": 2}}
    project = factories.project(session, generation=GENERATION.model_dump(), overlap=3, labeling=labeling)
    factories.published_rubric(session, project)
    service.adopt_base_model(session, project, "models/base", "base")
    return project


def sampling_run(session: Session, store: ArtifactStore, project: Project) -> Run:
    run = service.begin_sampling(session, store, project)
    service.run_started(session, run)
    return run


def comparisons(session: Session) -> list[Comparison]:
    return list(session.scalars(select(Comparison).order_by(Comparison.id)))


def test_comparisons_open_when_a_prompt_is_complete(session: Session, store: ArtifactStore, project: Project) -> None:
    first, second = factories.prompt(session, project), factories.prompt(session, project)
    run = sampling_run(session, store, project)
    batch = new_samples(first.id, ["a", "b", "c", "d"]) + new_samples(second.id, ["e", "f"])
    assert store_samples(session, run, batch) == 3
    assert {c.prompt_id for c in comparisons(session)} == {first.id}
    assert store_samples(session, run, new_samples(second.id, ["g", "h"], first=2)) == 3
    opened = comparisons(session)
    assert {(c.purpose, c.overlap, c.state, c.priority, c.round_id) for c in opened} == {("train", 3, "open", 0, None)}
    completion = session.scalars(select(Completion).where(Completion.text == "g")).one()
    assert (completion.model_version_id, completion.run_id, completion.sample_index) == (project.policy_id, run.id, 2)
    assert (completion.seed, completion.finish_reason, completion.n_tokens) == (17, "eos", 3)
    assert completion.sampling == {"temperature": 1.0, "max_new_tokens": 8}
    assert {c.selection["policy"] for c in opened} == {"random"}
    assert {c.selection.get("because") for c in opened} == {None, "there is no older response"}


def test_most_comparisons_that_teach_are_judged_once(session: Session, store: ArtifactStore, project: Project) -> None:
    project.labeling = project.labeling | {"judged_once": 0.8}
    prompts = [factories.prompt(session, project, split="train") for _ in range(50)]
    measured = [factories.prompt(session, project, split="heldout") for _ in range(5)]
    run = sampling_run(session, store, project)
    for prompt in prompts + measured:
        store_samples(session, run, new_samples(prompt.id, ["a", "b", "c", "d"]))
    overlaps = {p: Counter(c.overlap for c in comparisons(session) if c.purpose == p) for p in ("train", "heldout")}
    assert overlaps["heldout"] == {3: 5}
    assert set(overlaps["train"]) == {1, 3}
    assert overlaps["train"].total() == 150
    assert 96 <= overlaps["train"][1] <= 144  # 120 in the mean, five standard deviations each way


def test_a_resumed_run_doubles_nothing(session: Session, store: ArtifactStore, project: Project) -> None:
    prompt = factories.prompt(session, project)
    run = sampling_run(session, store, project)
    assert store_samples(session, run, new_samples(prompt.id, ["a", "b", "c"])) == 0
    everything = new_samples(prompt.id, ["a", "b", "c", "d"])
    assert store_samples(session, run, everything) == 3
    assert store_samples(session, run, everything) == 0
    assert len(comparisons(session)) == 3
    assert len(session.scalars(select(Completion)).all()) == 4
    assert queries.stored_samples(session, run.id) == {(prompt.id, i) for i in range(4)}


def test_samples_of_several_models_are_told_apart_by_their_index(
    session: Session, store: ArtifactStore, project: Project
) -> None:
    prompt = factories.prompt(session, project)
    other = factories.model(session, project, "policy", base="models/base", adapter="models/run-9")
    run = sampling_run(session, store, project)
    run.spec = run.spec | {"models": [{"base": "models/base"}, {"base": "models/base", "adapter": "models/run-9"}]}
    assert store_samples(session, run, new_samples(prompt.id, ["a", "b", "c", "d"])) == 0  # the other's are missing
    assert store_samples(session, run, new_samples(prompt.id, ["w", "x", "y", "z"], first=4)) == 3
    made_by = dict(session.execute(select(Completion.text, Completion.model_version_id)).all())
    assert {text for text, model in made_by.items() if model == project.policy_id} == set("abcd")
    assert {text for text, model in made_by.items() if model == other.id} == set("wxyz")


def test_equal_answers_are_not_asked_about(session: Session, store: ArtifactStore, project: Project) -> None:
    same, half = factories.prompt(session, project), factories.prompt(session, project)
    run = sampling_run(session, store, project)
    assert store_samples(session, run, new_samples(same.id, ["no", "no", "no ", "no"])) == 0
    assert store_samples(session, run, new_samples(half.id, ["no", "yes", "no", "yes"])) == 1


def test_a_heldout_prompt_opens_one_comparison_which_only_measures(
    session: Session, store: ArtifactStore, project: Project
) -> None:
    prompt = factories.prompt(session, project, split="heldout")
    run = sampling_run(session, store, project)
    store_samples(session, run, new_samples(prompt.id, ["a", "b", "c", "d"]))
    assert [c.purpose for c in comparisons(session)] == ["heldout"]


def round_with_new_policy(session: Session, project: Project) -> tuple[Round, Run]:
    """A round whose new policy will be sampled next."""
    assert project.policy_id is not None
    policy = factories.model(session, project, "policy", base="models/base", adapter="models/run-9")
    round_ = factories.round_(
        session,
        project,
        number=4,
        state="sampling",
        policy_before_id=project.policy_id,
        policy_after_id=policy.id,
        config={"pairs_per_prompt": 3},
    )
    spec = {
        "kind": "sample",
        "models": [{"base": "models/base", "adapter": "models/run-9"}],
        "prompts": "prompts/none.jsonl",
        "generation": GENERATION.model_dump(),
        "seed": 0,
    }
    return round_, factories.run(session, project, "sample", round_id=round_.id, spec=spec)


def test_a_new_policy_is_compared_with_the_previous_one_on_heldout_prompts(
    session: Session, store: ArtifactStore, project: Project
) -> None:
    heldout = factories.prompt(session, project, split="heldout")
    train = factories.prompt(session, project)
    earlier = sampling_run(session, store, project)
    store_samples(session, earlier, new_samples(heldout.id, ["a", "b", "c", "d"]))
    store_samples(session, earlier, new_samples(train.id, ["a", "b", "c", "d"]))
    before = len(comparisons(session))
    round_, run = round_with_new_policy(session, project)
    store_samples(session, run, new_samples(heldout.id, ["w", "x", "y", "z"]))
    store_samples(session, run, new_samples(train.id, ["w", "x", "y", "z"]))

    opened = comparisons(session)[before:]
    assert {(c.round_id, c.priority) for c in opened} == {(round_.id, 4)}
    assert [(c.prompt_id == heldout.id, c.purpose) for c in opened] == (
        [(True, "human_eval")] * 2 + [(True, "heldout")] + [(False, "train")] * 3
    )
    for comparison in opened[:2]:
        sides = (comparison.completion_a_id, comparison.completion_b_id)
        models = [session.get_one(Completion, side).model_version_id for side in sides]
        assert models == [round_.policy_before_id, round_.policy_after_id]


def test_a_new_policy_is_compared_with_the_adopted_and_with_the_first_one(
    session: Session, store: ArtifactStore, project: Project
) -> None:
    """At random, whatever pairs the project prefers, and with a fixed number of judgments."""
    project.labeling = {"pairs": {"random": 0, "uncertain": 1, "near_miss": 1, "new_against_old": 0}}
    project.labeling |= {"adaptive": {"at_least": 1, "at_most": 5}}
    heldout, train = factories.prompt(session, project, split="heldout"), factories.prompt(session, project)
    round_, run = round_with_new_policy(session, project)
    first = round_.reference_id
    adopted = factories.model(session, project, "policy", base="models/base", adapter="models/run-8")
    round_.policy_before_id = adopted.id
    models = [*run.spec["models"], {"base": "models/base", "adapter": "models/run-8"}, {"base": "models/base"}]
    run.spec = run.spec | {"models": models, "heldout_models": 2}
    session.flush()
    # The others are sampled on the held-out prompt alone: the train prompt is complete with four.
    heads = [[float(n), 1.0] for n in range(4)]
    assert store_samples(session, run, scored(train.id, heads)) == 3
    assert store_samples(session, run, scored(heldout.id, heads)) == 0
    assert store_samples(session, run, new_samples(heldout.id, list("abcdefgh"), first=4)) == 3
    opened = [c for c in comparisons(session) if c.prompt_id == heldout.id]
    assert [(c.purpose, c.selection["policy"], c.overlap, c.overlap_max) for c in opened] == [
        ("human_eval", "evaluation", 3, None),
        ("human_eval", "evaluation", 3, None),
        ("heldout", "random", 1, 5),
    ]
    sides = [
        {session.get_one(Completion, side).model_version_id for side in (c.completion_a_id, c.completion_b_id)}
        for c in opened
    ]
    assert sides == [{adopted.id, round_.policy_after_id}, {first, round_.policy_after_id}, {round_.policy_after_id}]


@pytest.mark.parametrize("policy", [each for each in POLICIES if each not in ("random", "new_against_old")])
def test_the_database_refuses_to_measure_on_pairs_that_were_chosen(session: Session, policy: str) -> None:
    factories.comparison(session, purpose="human_eval", selection={"policy": "evaluation"})
    factories.comparison(session, purpose="train", selection={"policy": policy})
    with pytest.raises(IntegrityError, match="measured_at_random"), session.begin_nested():
        factories.comparison(session, purpose="human_eval", selection={"policy": policy})


def test_policies_are_compared_on_prompts_on_which_they_were_compared_least(
    session: Session, store: ArtifactStore, project: Project
) -> None:
    prompts = [factories.prompt(session, project, split="heldout") for _ in range(6)]
    for _ in range(10):
        factories.prompt(session, project)

    def chosen(share: float) -> set[int]:
        found = queries.prompts_to_sample(session, project.id, 10, 0, {"easy": 1}, share)
        assert len(found) == 10
        return {prompt.id for prompt in found if prompt.split == "heldout"}

    first = chosen(0.3)
    assert len(first) == 3
    for prompt in prompts:
        if prompt.id in first:
            factories.comparison(session, project, prompt=prompt, purpose="human_eval")
        else:
            factories.comparison(session, project, prompt=prompt, purpose="heldout")  # compares no policies
    assert chosen(0.3) == {prompt.id for prompt in prompts} - first
    assert chosen(1) == {prompt.id for prompt in prompts}
    assert chosen(0) == set()
    assert len(chosen(0.01)) == 1


def test_who_has_not_answered_the_heldout_prompts_is_sampled_on_them_where_the_worker_is(
    session: Session, store: ArtifactStore, project: Project
) -> None:
    """A server that samples the new policy may lack the earlier ones."""
    heldout = factories.prompt(session, project, split="heldout")
    factories.prompt(session, project)
    round_, _ = round_with_new_policy(session, project)
    round_.config = config(prompts=2, evaluation_share=0.5).model_dump(mode="json")

    def spec() -> SampleSpec:
        made = Maker(session, store, project, SamplingServer("http://gpu:8000/v1", None)).run_of(round_).spec
        return SampleSpec.model_validate(made)

    asked = spec()
    assert [model.adapter for model in asked.models] == ["models/run-9", None]
    assert (asked.heldout_models, len(asked.servers)) == (1, 1)
    for temperature, lacking in ((0.5, 1), (1.0, 0)):  # otherwise sampled, they are not to be compared
        factories.completion(
            session,
            heldout,
            model_version_id=round_.policy_before_id,
            sampling={"temperature": temperature, "max_new_tokens": 8},
        )
        assert spec().heldout_models == lacking


def test_both_policies_may_answer_anew(session: Session, store: ArtifactStore, project: Project) -> None:
    """People then compare both policies' current answers. On train prompts, this teaches but measures nothing."""
    heldout, train = factories.prompt(session, project, split="heldout"), factories.prompt(session, project)
    store_samples(session, sampling_run(session, store, project), new_samples(heldout.id, ["a", "b", "c", "d"]))
    before = len(comparisons(session))
    _, run = round_with_new_policy(session, project)
    run.spec = run.spec | {"models": [*run.spec["models"], {"base": "models/base"}]}
    for prompt in (heldout, train):
        store_samples(session, run, new_samples(prompt.id, ["s", "t", "u", "v", "w", "x", "y", "z"]))
    opened = comparisons(session)[before:]
    assert [(c.prompt_id == heldout.id, c.purpose) for c in opened] == (
        [(True, "human_eval")] * 2 + [(True, "heldout")] + [(False, "train")] * 3
    )
    for i, comparison in enumerate(opened):
        sides = [session.get_one(Completion, s) for s in (comparison.completion_a_id, comparison.completion_b_id)]
        across = {"stuv".find(sides[0].text) >= 0, "stuv".find(sides[1].text) >= 0} == {True, False}
        assert across == (i % 3 < 2)  # two across, then one within the new policy
        assert sides[0].run_id == sides[1].run_id == run.id


def test_the_win_rate_counts_the_new_policys_side(session: Session, store: ArtifactStore, project: Project) -> None:
    prompt = factories.prompt(session, project, split="heldout", domain="safety")
    round_, _ = round_with_new_policy(session, project)
    labelers = [factories.user(session).id for _ in range(3)]
    old = {"model_version_id": round_.policy_before_id}
    new = {"model_version_id": round_.policy_after_id}

    def judged(a: dict[str, int], b: dict[str, int], *preferences: int) -> None:
        said = majority(preferences)
        sides = [factories.completion(session, prompt, **side).id for side in (a, b)]
        decided(
            session,
            project,
            prompt,
            labelers[: len(preferences)],
            preferences=preferences,
            completion_a_id=sides[0],
            completion_b_id=sides[1],
            purpose="human_eval",
            round_id=round_.id,
            p_b=said.p_b,
            p_tie=said.p_tie,
        )

    judged(old, new, 2)  # a win
    judged(new, old, -1)  # a win
    judged(new, old, 1)  # a loss
    judged(old, new, 0)  # a tie
    judged(old, new, 3, -1, -1)  # a win and two losses, however strong
    judged(old, new, 1, 0, 0)  # a win and two ties
    rates = outcomes.win_rates(session, [round_])
    # One prompt, so one value: four wins, three losses and three ties.
    assert {name for _, name in rates} == {"", "domain=safety", "difficulty=easy"}
    for rivals in rates.values():
        assert rivals.before is not None
        assert (rivals.before.value, rivals.before.n, rivals.before.prompts) == (0.55, 10, 1)
        assert rivals.first == rivals.before
    assert result_queries.opened_comparisons(session, [round_.id]) == {(round_.id, "human_eval"): (6, 6)}


def test_a_project_without_a_rubric_says_so(session: Session, store: ArtifactStore) -> None:
    project = factories.project(session)
    service.adopt_base_model(session, project, "models/base", "base")
    factories.prompt(session, project)
    with pytest.raises(Conflict, match="rubric"):
        service.begin_sampling(session, store, project)


def test_which_pairs_are_asked_differs_between_prompts(
    session: Session, store: ArtifactStore, project: Project
) -> None:
    """If samples 0 and 1 always met 2 and 3, differences between seeds would look like a preference."""
    prompts = [factories.prompt(session, project) for _ in range(12)]
    run = sampling_run(session, store, project)
    for prompt in prompts:
        store_samples(session, run, new_samples(prompt.id, ["a", "b", "c", "d"]))
    asked = {
        tuple(session.get_one(Completion, side).text for side in (c.completion_a_id, c.completion_b_id))
        for c in comparisons(session)
    }
    assert len(asked) == 6  # every pair of texts is asked about somewhere


@pytest.mark.parametrize("split", ["withdrawn", "regression"])
def test_a_prompt_that_is_no_longer_for_training_is_not_asked_about(
    session: Session, store: ArtifactStore, project: Project, split: str
) -> None:
    prompt = factories.prompt(session, project)
    run = sampling_run(session, store, project)
    prompt.split = split
    session.flush()
    assert store_samples(session, run, new_samples(prompt.id, ["a", "b", "c", "d"])) == 0
    assert comparisons(session) == []


def test_a_response_with_a_nul_is_stored(session: Session, store: ArtifactStore, project: Project) -> None:
    prompt = factories.prompt(session, project)
    run = sampling_run(session, store, project)
    store_samples(session, run, new_samples(prompt.id, ["a\0b"]))
    assert session.scalars(select(Completion.text)).all() == ["a\ufffdb"]


# --- policies, rankings, overlap -------------------------------------------------------------------------------------


def scored(prompt_id: int, rewards: list[list[float]]) -> list[NewSample]:
    samples = new_samples(prompt_id, [f"response {n}" for n in range(len(rewards))])
    return [
        sample._replace(sampling=sample.sampling | {"reward": {"models": ["models/run-3"], "heads": heads}})
        for sample, heads in zip(samples, rewards, strict=True)
    ]


def asked_about(session: Session) -> list[tuple[str, str, str]]:
    """Return (policy, text of A, text of B) of each comparison."""
    return [
        (
            c.selection["policy"],
            *(session.get_one(Completion, side).text for side in (c.completion_a_id, c.completion_b_id)),
        )
        for c in comparisons(session)
    ]


def test_the_closest_rewards_are_asked_about_with_what_was_looked_at(
    session: Session, store: ArtifactStore, project: Project
) -> None:
    project.labeling = {"pairs": {"random": 0, "near_miss": 1, "new_against_old": 0}}
    prompt = factories.prompt(session, project)
    run = sampling_run(session, store, project)
    assert store_samples(session, run, scored(prompt.id, [[0.0], [5.0], [1.5], [5.25]])) == 3
    assert asked_about(session) == [
        ("near_miss", "response 1", "response 3"),  # 0.25 apart
        ("near_miss", "response 0", "response 2"),  # 1.5
        ("near_miss", "response 1", "response 2"),  # 3.5
    ]
    assert comparisons(session)[0].selection == {"policy": "near_miss", "rewards": [5.0, 5.25], "gap": 0.25}


def test_where_the_heads_disagree_most(session: Session, store: ArtifactStore, project: Project) -> None:
    project.labeling = {"pairs": {"random": 0, "uncertain": 1, "new_against_old": 0}}
    prompt = factories.prompt(session, project)
    run = sampling_run(session, store, project)
    # Differences by head: 0-1: 1, 1; 0-2: 1, -1; 0-3: 0, 0; 1-2: 0, -2; 1-3: -1, -1; 2-3: -1, 1.
    store_samples(session, run, scored(prompt.id, [[1.0, 1.0], [0.0, 0.0], [0.0, 2.0], [1.0, 1.0]]))
    opened = comparisons(session)
    assert [c.selection["variance"] for c in opened] == [1.0, 1.0, 1.0]
    assert {name for row in asked_about(session) for name in row[1:]} >= {"response 2"}
    assert all("response 2" in row for row in asked_about(session))


@pytest.mark.parametrize(
    ("policy", "rewards", "because"),
    [
        ("near_miss", None, "no reward model has scored the responses"),
        ("uncertain", None, "no reward model has scored the responses"),
        ("uncertain", [[1.0], [2.0], [3.0], [4.0]], "the reward model has a single head, which cannot disagree"),
        ("new_against_old", None, "there is no older response"),
    ],
)
def test_a_policy_without_what_it_needs_gives_way_and_says_so(
    session: Session,
    store: ArtifactStore,
    project: Project,
    policy: str,
    rewards: list[list[float]] | None,
    because: str,
) -> None:
    project.labeling = {"pairs": {"random": 0, "new_against_old": 0, policy: 1}}
    prompt = factories.prompt(session, project)
    run = sampling_run(session, store, project)
    samples = scored(prompt.id, rewards) if rewards else new_samples(prompt.id, ["a", "b", "c", "d"])
    assert store_samples(session, run, samples) == 3
    assert [c.selection for c in comparisons(session)] == [
        {"policy": "random", "wanted": policy, "because": because}
    ] * 3


def test_the_worker_scores_samples_only_where_a_policy_looks(
    session: Session, store: ArtifactStore, project: Project
) -> None:
    factories.prompt(session, project)
    assert sampling_run(session, store, project).spec["reward_models"] == []
    project.labeling = {"pairs": {"near_miss": 1}}
    runs = select(Run).where(Run.state == "running")
    session.scalars(runs).one().state = "succeeded"
    assert sampling_run(session, store, project).spec["reward_models"] == []  # there is none
    session.scalars(runs).one().state = "succeeded"
    factories.model(session, project, "reward", base="models/run-3")
    factories.model(session, project, "reward", base="models/run-7")
    assert sampling_run(session, store, project).spec["reward_models"] == ["models/run-7"]


def test_overlap_by_purpose_slice_and_answers(session: Session, store: ArtifactStore, project: Project) -> None:
    rules = [{"where": "purpose=heldout", "overlap": 5}, {"where": "domain=law", "overlap": 4}]
    project.labeling = {"overlap": rules, "adaptive": {"at_least": 1, "at_most": 6}}
    law = factories.prompt(session, project, domain="law")
    plain = factories.prompt(session, project, domain="plain")
    heldout = factories.prompt(session, project, domain="law", split="heldout")
    run = sampling_run(session, store, project)
    for prompt in (law, plain, heldout):
        store_samples(session, run, new_samples(prompt.id, ["a", "b", "c", "d"]))
    asked = {c.prompt_id: (c.overlap, c.overlap_max) for c in comparisons(session)}
    assert asked == {law.id: (4, None), plain.id: (1, 6), heldout.id: (5, None)}


def test_a_ranking_is_offered_through_one_of_its_pairs(
    session: Session, store: ArtifactStore, project: Project
) -> None:
    project.labeling = {"ranking_size": 3, "pairs": {"random": 1, "new_against_old": 0}}
    prompt = factories.prompt(session, project)
    run = sampling_run(session, store, project)
    assert store_samples(session, run, new_samples(prompt.id, ["a", "b", "c", "d"])) == 3
    opened = comparisons(session)
    assert len({c.ranking_id for c in opened}) == 1
    assert [c.offered for c in opened] == [True, False, False]
    members = {side for c in opened for side in (c.completion_a_id, c.completion_b_id)}
    assert len(members) == 3
    assert all(c.completion_a_id < c.completion_b_id for c in opened)
    task = assigning.next_task(session, project, factories.user(session))
    assert task is not None
    assert (task.is_ranking, len(task.responses)) == (True, 3)
    assert assigning.next_task(session, project, factories.user(session)).position == task.position  # type: ignore[union-attr]


def test_where_people_rank_policies_are_still_compared_in_pairs(
    session: Session, store: ArtifactStore, project: Project
) -> None:
    heldout = factories.prompt(session, project, split="heldout")
    store_samples(session, sampling_run(session, store, project), new_samples(heldout.id, ["a", "b", "c", "d"]))
    before = len(comparisons(session))
    project.labeling = {"ranking_size": 4, "pairs": {"random": 0, "new_against_old": 1}}
    _, run = round_with_new_policy(session, project)
    assert store_samples(session, run, new_samples(heldout.id, ["w", "x", "y", "z"])) == 8
    opened = comparisons(session)[before:]
    # Two pairs of old and new, and a ranking of the four new ones: six pairs.
    kinds = sorted((c.purpose, c.ranking_id is None) for c in opened)
    assert kinds == [("heldout", False)] * 6 + [("human_eval", True)] * 2


def test_two_different_responses_are_a_pair_however_large_rankings_are(
    session: Session, store: ArtifactStore, project: Project
) -> None:
    project.labeling = {"ranking_size": 4}
    prompt = factories.prompt(session, project)
    run = sampling_run(session, store, project)
    assert store_samples(session, run, new_samples(prompt.id, ["a", "b", "a", "b"])) == 1
    (pair,) = comparisons(session)
    assert (pair.ranking_id, pair.offered) == (None, True)


def test_prompts_are_mixed_by_difficulty(session: Session, store: ArtifactStore, project: Project) -> None:
    for difficulty, n in (("easy", 20), ("hard", 20), ("adversarial", 2)):
        for _ in range(n):
            factories.prompt(session, project, difficulty=difficulty)
    found = queries.prompts_to_sample(session, project.id, 12, 0, {"easy": 1, "hard": 3, "adversarial": 1}, 0.3)
    assert Counter(prompt.difficulty for prompt in found) == {"easy": 2, "hard": 8, "adversarial": 2}
    none_easy = queries.prompts_to_sample(session, project.id, 40, 0, {"easy": 0, "hard": 1, "adversarial": 1}, 0.3)
    assert Counter(prompt.difficulty for prompt in none_easy) == {"hard": 20, "adversarial": 2}

"""The transformers engine on real weights: a completion depends on weights, seed, prompt and index, and on nothing else.

Two models: stories260k (no chat template, its begin and end token are one) and the start of the small run that the suite
shares (a chat template, an end token that it does sample).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy
import pytest
import torch

from selfplay.config import Engine as EngineConfig
from selfplay.config import SamplingParams
from selfplay.engines.hf import LEAST_ROWS_TO_DROP, TransformersEngine, draw, filtered_logprobs, uniforms
from selfplay.engines.open import open_engine, reload_engine
from selfplay.errors import ConfigError
from selfplay.models import encode_prompt, load_policy, load_tokenizer
from selfplay.records import Completion, Prompt

STORIES = Path(__file__).parents[3] / "shared" / "models" / "stories260k"
needs_stories = pytest.mark.skipif(not STORIES.is_dir(), reason=f"{STORIES} is absent: the real model stays untested")
OPENINGS = (
    "Once",
    "Once upon a time there was a little dog",
    "Lily",
    "Tom and his mom went to the park to play with a ball",
    "The sun",
    "One day, a boy named Tim found a big red box",
)
PROMPTS = [Prompt.plain(f"p{number}", OPENINGS[number % len(OPENINGS)]) for number in range(14)]
Rows = list[list[Completion]]


def in_float64(path: Path) -> TransformersEngine:
    """An engine whose logits are exact to a dozen digits, so that no processor's rounding decides which token is drawn."""
    return TransformersEngine(load_policy(path).double(), load_tokenizer(path))


@pytest.fixture(scope="module", params=[pytest.param("stories260k", marks=needs_stories), "bootstrapped"])
def engine(request: pytest.FixtureRequest, tiny_run: Path) -> TransformersEngine:
    return in_float64(STORIES if request.param == "stories260k" else tiny_run / "iteration-000" / "policy")


@pytest.fixture
def tiny(tiny_run: Path) -> TransformersEngine:
    return in_float64(tiny_run / "iteration-000" / "policy")


@pytest.fixture
def batch_sizes(engine: TransformersEngine) -> Iterator[list[int]]:
    """Rows of each forward pass that the engine makes."""
    seen: list[int] = []
    hook = engine.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    yield seen
    hook.remove()


def tokens(rows: Rows) -> dict[str, tuple[int, ...]]:
    return {one.id: one.token_ids for row in rows for one in row}


def with_batches_of(engine: TransformersEngine, size: int) -> TransformersEngine:
    return TransformersEngine(engine.model, engine.tokenizer, batch_size=size)


def test_neither_the_batch_nor_the_order_changes_a_completion(engine: TransformersEngine) -> None:
    sampling = SamplingParams(max_tokens=24, n=3, seed=5)
    one, seven, all_at_once = (with_batches_of(engine, size).generate(PROMPTS, sampling) for size in (1, 7, 64))
    assert tokens(one) == tokens(seven) == tokens(all_at_once) and len(tokens(one)) == 42
    shuffled = with_batches_of(engine, 7).generate(PROMPTS[::-1], sampling)
    assert tokens(shuffled) == tokens(one)
    assert [row[0].prompt_id for row in shuffled] == [prompt.id for prompt in PROMPTS[::-1]]
    alone = engine.generate(PROMPTS[5:6], sampling)
    assert tokens(alone).items() <= tokens(one).items()
    first = engine.generate(PROMPTS[:4], sampling.model_copy(update={"n": 1}))
    assert tokens(first).items() <= tokens(one).items(), "fewer completions of a prompt are the first ones"


def test_a_shorter_limit_cuts_and_changes_nothing_before(engine: TransformersEngine) -> None:
    long = engine.generate(PROMPTS[:6], SamplingParams(max_tokens=20, seed=1))
    short = engine.generate(PROMPTS[:6], SamplingParams(max_tokens=8, seed=1))
    assert [row[0].token_ids for row in short] == [row[0].token_ids[:8] for row in long]


def test_the_seed_decides(engine: TransformersEngine) -> None:
    sampling = SamplingParams(max_tokens=24, n=2, seed=5)
    same, other = (
        engine.generate(PROMPTS[:6], sampling),
        engine.generate(PROMPTS[:6], sampling.model_copy(update={"seed": 6})),
    )
    assert tokens(same) == tokens(engine.generate(PROMPTS[:6], sampling))
    assert not set(tokens(same).values()) & set(tokens(other).values())
    assert len(set(tokens(same).values())) == 12, "completions of one prompt differ"


def test_equal_text_under_another_id_is_another_draw(engine: TransformersEngine) -> None:
    pair = engine.generate([Prompt.plain("a", "The dog"), Prompt.plain("b", "The dog")], SamplingParams(max_tokens=24))
    assert pair[0][0].token_ids != pair[1][0].token_ids


def test_greedy_is_what_transformers_itself_generates(engine: TransformersEngine) -> None:
    ours = engine.generate(PROMPTS[:6], SamplingParams(temperature=0, max_tokens=40))
    for prompt, [completion] in zip(PROMPTS[:6], ours, strict=True):
        ids = torch.tensor([encode_prompt(engine.tokenizer, prompt)])
        theirs = engine.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=40,
            pad_token_id=engine.tokenizer.pad_token_id,
        )
        assert list(completion.token_ids) == theirs[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_logprobs_are_those_of_one_pass_over_the_whole_text(engine: TransformersEngine, temperature: float) -> None:
    rows = engine.generate(PROMPTS[:6], SamplingParams(max_tokens=30, n=2, temperature=temperature, seed=3))
    for prompt, completions in zip(PROMPTS[:6], rows, strict=True):
        ids = encode_prompt(engine.tokenizer, prompt)
        for completion in completions:
            with torch.inference_mode():
                logits = engine.model(torch.tensor([[*ids, *completion.token_ids]])).logits[0, len(ids) - 1 : -1]
            expected = torch.log_softmax(logits.double() / temperature, dim=-1)
            chosen = expected.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
            assert torch.allclose(torch.tensor(completion.logprobs, dtype=torch.float64), chosen, atol=1e-4, rtol=0)


def test_finished_rows_leave_the_batch(engine: TransformersEngine, batch_sizes: list[int]) -> None:
    """With `e` as a stop string rows end at many places; of 42 rows at least eight leave at a time."""
    rows = engine.generate(PROMPTS, SamplingParams(max_tokens=40, n=3, seed=5, stop=("e",)))
    ended = sorted(len(one.token_ids) for row in rows for one in row if one.finish_reason == "stop")
    assert len(ended) > 30 and batch_sizes[0] == len(OPENINGS), "the first pass is over the distinct prompts"
    batch_sizes[0] = 42
    assert batch_sizes == sorted(batch_sizes, reverse=True) and len(set(batch_sizes)) > 2
    for step, size in enumerate(batch_sizes):
        going = 42 - sum(length <= step for length in ended)
        assert going <= size < going + max(LEAST_ROWS_TO_DROP, math.ceil(size / 8) + LEAST_ROWS_TO_DROP)
    assert len(batch_sizes) == max(len(one.token_ids) for row in rows for one in row), (
        "no pass after the last row ended"
    )


def test_rows_that_stay_are_untouched_by_those_that_leave(engine: TransformersEngine) -> None:
    sampling = SamplingParams(max_tokens=40, n=3, seed=5)
    free, stopped = (
        tokens(engine.generate(PROMPTS, sampling)),
        tokens(engine.generate(PROMPTS, sampling.model_copy(update={"stop": ("e",)}))),
    )
    assert all(free[name][: len(ids)] == ids for name, ids in stopped.items())


def test_end_tokens_end_a_row_and_stay_in_it(tiny: TransformersEngine) -> None:
    room = tiny.model.config.max_position_embeddings - max(len(encode_prompt(tiny.tokenizer, one)) for one in PROMPTS)
    free = sorted(
        len(one.token_ids) for row in tiny.generate(PROMPTS, SamplingParams(max_tokens=room, n=4)) for one in row
    )
    limit = free[len(free) // 4]  # a quarter of the rows have ended by then, whatever the model has learned
    rows = [one for row in tiny.generate(PROMPTS, SamplingParams(max_tokens=limit, n=4)) for one in row]
    end = tiny.tokenizer.eos_token_id
    stopped = [one for one in rows if one.finish_reason == "stop"]
    assert len(free) // 4 < len(stopped) < len(rows), "some end and some do not"
    assert all(one.token_ids[-1] == end and end not in one.token_ids[:-1] for one in stopped)
    assert all(
        len(one.token_ids) == limit and end not in one.token_ids for one in rows if one.finish_reason == "length"
    )
    assert not any(token in one.text for one in rows for token in tiny.tokenizer.all_special_tokens)


def test_a_stop_string_ends_the_text_where_it_begins(engine: TransformersEngine) -> None:
    sampling = SamplingParams(temperature=0, max_tokens=40)
    [[free]] = engine.generate(PROMPTS[1:2], sampling)
    string = free.text[11:18]
    [[cut]] = engine.generate(PROMPTS[1:2], sampling.model_copy(update={"stop": ("never there", string)}))
    assert cut.finish_reason == "stop" and cut.text == free.text[: free.text.index(string)]
    decoded = [
        engine.tokenizer.decode(cut.token_ids[:end], skip_special_tokens=True) for end in (len(cut.token_ids) - 1, None)
    ]
    assert string not in decoded[0] and string in decoded[1], "it ends with the token that completes the string"
    assert len(cut.logprobs or ()) == len(cut.token_ids)


def test_names_and_places_of_completions(engine: TransformersEngine) -> None:
    named = TransformersEngine(engine.model, engine.tokenizer, name="iteration-007")
    rows = named.generate(PROMPTS[:2], SamplingParams(max_tokens=3, n=2))
    assert [[one.id for one in row] for row in rows] == [["p0/0", "p0/1"], ["p1/0", "p1/1"]]
    assert {one.policy for row in rows for one in row} == {"iteration-007"}
    assert named.generate([], SamplingParams()) == []


def test_a_prompt_without_room_is_refused(engine: TransformersEngine) -> None:
    limit = engine.model.config.max_position_embeddings
    ids = len(encode_prompt(engine.tokenizer, PROMPTS[0]))
    engine.generate(PROMPTS[:1], SamplingParams(max_tokens=limit - ids, stop=("e", "a", "i", "o", " ")))
    with pytest.raises(
        ConfigError,
        match=f"'p0' has {ids} tokens, and with sampling.max_tokens {limit - ids + 1} that is more "
        f"than the model's context of {limit}",
    ):
        engine.generate(PROMPTS[:1], SamplingParams(max_tokens=limit - ids + 1))


def test_generating_leaves_a_model_in_training_as_it_was(tiny: TransformersEngine) -> None:
    tiny.model.train()
    tiny.generate(PROMPTS[:1], SamplingParams(max_tokens=2))
    assert tiny.model.training
    tiny.model.eval()
    tiny.generate(PROMPTS[:1], SamplingParams(max_tokens=2))
    assert not tiny.model.training


def test_other_weights_give_other_text(tiny: TransformersEngine, tiny_run: Path) -> None:
    sampling, later = SamplingParams(max_tokens=16, seed=2), load_policy(tiny_run / "iteration-002" / "policy").double()
    before = tokens(tiny.generate(PROMPTS, sampling))
    tiny.update_weights(later)
    after = tokens(tiny.generate(PROMPTS, sampling))
    assert after == tokens(TransformersEngine(later, tiny.tokenizer).generate(PROMPTS, sampling)) != before


def test_choice_logprobs_are_the_next_tokens(tiny: TransformersEngine) -> None:
    found = tiny.choice_logprobs(PROMPTS[:3], ["A", "B", "1"])
    for prompt, values in zip(PROMPTS[:3], found, strict=True):
        with torch.inference_mode():
            logits = tiny.model(torch.tensor([encode_prompt(tiny.tokenizer, prompt)])).logits[0, -1].double()
        places = [tiny.tokenizer.convert_tokens_to_ids(choice) for choice in ("A", "B", "1")]
        assert values == pytest.approx(torch.log_softmax(logits, -1)[places].tolist(), abs=1e-5)
    with pytest.raises(ConfigError, match="the label 'neither of them' is .* tokens for this model"):
        tiny.choice_logprobs(PROMPTS[:1], ["A", "neither of them"])
    with pytest.raises(ConfigError, match="are not distinct tokens"):
        tiny.choice_logprobs(PROMPTS[:1], ["A", "A"])


def brute_force(logits: Sequence[float], temperature: float, top_k: int, top_p: float) -> list[float]:
    """Probabilities after temperature, then the k likeliest, then the fewest of the likeliest that sum to top_p or more."""
    weights = [math.exp(value / temperature) for value in logits]
    order = sorted(range(len(weights)), key=lambda place: -weights[place])
    kept = order[:top_k] if top_k else order
    total, nucleus, reached = sum(weights), [], 0.0
    for place in kept:
        if reached >= top_p:
            break
        nucleus.append(place)
        reached += weights[place] / total
    left = sum(weights[place] for place in nucleus)
    return [weights[place] / left if place in nucleus else 0.0 for place in range(len(weights))]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(
    ("top_k", "top_p"), [(0, 1.0), (1, 1.0), (5, 1.0), (99, 1.0), (0, 0.3), (0, 0.9), (7, 0.6), (2, 0.99)]
)
def test_cutting_the_tail_against_brute_force(temperature: float, top_k: int, top_p: float) -> None:
    logits = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)) * 2
    found = filtered_logprobs(logits, SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)).double().exp()
    expected = torch.tensor(
        [brute_force(row, temperature, top_k, top_p) for row in logits.double().tolist()], dtype=torch.float64
    )
    assert torch.allclose(found, expected, atol=2e-6, rtol=0)
    assert torch.equal(found > 0, expected > 0)


def test_the_likeliest_token_always_stays() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2]]))
    assert filtered_logprobs(logits, SamplingParams(top_p=0.1)).exp().tolist() == [[1.0, 0.0, 0.0]]
    # 0.5 alone does not reach 0.6; with 0.3 it does. 0.5 / 0.8 = 0.625, 0.3 / 0.8 = 0.375.
    assert filtered_logprobs(logits, SamplingParams(top_p=0.6)).exp().tolist() == [
        pytest.approx([0.625, 0.375, 0.0], abs=1e-6)
    ]


@pytest.mark.parametrize(("uniform", "token"), [(0.0, 0), (0.19, 0), (0.21, 1), (0.69, 1), (0.71, 3), (0.9999999, 3)])
def test_a_uniform_number_picks_the_token_whose_share_it_falls_into(uniform: float, token: int) -> None:
    """Shares 0.2, 0.5, 0 and 0.3 reach up to 0.2, 0.7, 0.7 and 1: the third token is never drawn."""
    logprobs = torch.log(torch.tensor([[0.2, 0.5, 0.0, 0.3]]))
    assert draw(logprobs, torch.tensor([uniform], dtype=torch.float64)).tolist() == [token]


def test_a_first_token_without_a_share_is_never_drawn() -> None:
    logprobs = torch.log(torch.tensor([[0.0, 1.0]]))
    assert draw(logprobs, torch.zeros(1, dtype=torch.float64)).tolist() == [1]


def test_random_numbers_belong_to_seed_prompt_and_index() -> None:
    names = [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1), (0, "a0", 0), (10, "a", 0), (1, "0a", 0)]
    streams = [uniforms(*name, 500) for name in names]
    for place, stream in enumerate(streams):
        assert numpy.array_equal(uniforms(*names[place], 20), stream[:20]), (
            "a longer stream begins with the shorter one"
        )
        assert ((stream >= 0) & (stream < 1)).all()
        # The mean of 500 uniforms deviates by sqrt(1 / 12 / 500) = 0.0129; four deviations are 0.052.
        assert abs(stream.mean() - 0.5) < 0.052
        assert not any(numpy.isin(stream, other).any() for other in streams[place + 1 :])


def test_samples_follow_the_models_distribution(tiny: TransformersEngine) -> None:
    """4,000 first tokens of one prompt; chi-squared over the tokens expected 20 times or more, the rest as one."""
    count = 4000
    rows = with_batches_of(tiny, 1000).generate(PROMPTS[:1], SamplingParams(max_tokens=1, n=count, seed=1))
    with torch.inference_mode():
        logits = tiny.model(torch.tensor([encode_prompt(tiny.tokenizer, PROMPTS[0])])).logits[0, -1].double()
    expected = (torch.softmax(logits, -1) * count).numpy()
    observed = numpy.bincount([one.token_ids[0] for one in rows[0]], minlength=len(expected))
    common = expected >= 20
    cells = [
        *((observed[common] - expected[common]) ** 2 / expected[common]),
        (observed[~common].sum() - expected[~common].sum()) ** 2 / expected[~common].sum(),
    ]
    freedom = len(cells) - 1
    # Mean `freedom`, deviation sqrt(2 freedom): five deviations are passed by chance less than once in 10,000.
    assert freedom > 5 and sum(cells) < freedom + 5 * math.sqrt(2 * freedom)


Opener = Callable[[Path], TransformersEngine]


@pytest.mark.parametrize(("dtype", "kind"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_a_reloaded_engine_is_one_opened_anew(tiny_run: Path, dtype: str, kind: torch.dtype) -> None:
    """Precision included: otherwise a resumed run would sample other text than one that was never stopped."""
    start, later = (tiny_run / f"iteration-00{number}" / "policy" for number in (0, 2))
    kept = open_engine(EngineConfig(batch_size=5), start, "start", dtype=dtype)
    reload_engine(kept, later, "later", dtype)
    fresh = open_engine(EngineConfig(batch_size=5), later, "later", dtype=dtype)
    sampling = SamplingParams(max_tokens=8, seed=4)
    assert kept.generate(PROMPTS[:7], sampling) == fresh.generate(PROMPTS[:7], sampling)
    assert isinstance(kept, TransformersEngine) and kept.batch_size == 5
    assert {parameter.dtype for parameter in kept.model.parameters()} == {kind}

"""Continuous batching against full recomputation and against transformers.

Answers without a cache, from a full forward pass over each growing sequence, are the reference:
whatever the slots, the order, the bursts and the neighbours are, the engine must give the same.
"""

import dataclasses
import functools
import itertools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alpacare_jax.distributed import sharding
from alpacare_jax.inference import cache, compiled, rows
from alpacare_jax.inference import engine as engine_module
from alpacare_jax.inference.compiled import Compiled, Sizes
from alpacare_jax.inference.engine import Engine
from alpacare_jax.inference.programs import BURST
from alpacare_jax.inference.requests import Answer, Request
from alpacare_jax.inference.sampling import Sampling, sample, settings_of
from alpacare_jax.model import params
from alpacare_jax.model.config import LlamaConfig
from alpacare_jax.model.llama import Llama
from alpacare_jax.model.rope import RopeScaling
from configs import common
from tests.alpacare_jax.inference.test_sampling import assert_drawn_from, shares_of
from tests.support.hf_folders import params_to_hf

pytestmark = pytest.mark.usefixtures("quickly_compiled")

CONFIG = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
)
MAX_LENGTH = 60
NO_EOS = (CONFIG.vocab_size,)  # an id that no logit stands for
GREEDY = Sampling()
SAMPLED = Sampling(temperature=0.9, top_k=20, top_p=0.9, repetition_penalty=1.2, seed=3)


def make_requests(shapes) -> list[Request]:
    """Requests of (prompt tokens, most new tokens), numbered from 10, with random prompts."""
    draw = np.random.default_rng(0)
    return [
        Request(10 + i, draw.integers(0, CONFIG.vocab_size, length).tolist(), limit)
        for i, (length, limit) in enumerate(shapes)
    ]


# Lengths on both sides of 8, 16 and 32; limits of 1, limits that max_length cuts, and between.
REQUESTS = make_requests(
    [(1, 60), (7, 60), (8, 9), (9, 1), (16, 30), (17, 60), (33, 60), (59, 60), (3, 5), (40, 60)]
    + [(2, 17), (15, 16), (32, 2), (31, 33), (58, 60), (24, 20), (5, 1), (12, 48)]
)


def random_weights(config: LlamaConfig, seed: int):
    """Random weights, norms and biases too, with logits far apart: rounding must not decide."""
    draw = np.random.default_rng(seed)

    def leaf(weight):
        values = (weight.init == "ones") + 0.3 * draw.normal(
            size=params.weight_shape(weight, config)
        )
        return jnp.asarray(values, jnp.float32)

    return params.build_tree(config, leaf)


@pytest.fixture(scope="module")
def weights():
    return random_weights(CONFIG, seed=0)


@pytest.fixture(autouse=True, scope="module")
def short_pieces():
    """Short prompts cross the bounds of pieces, chunks and blocks of the cache; every size."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (compiled, engine_module, rows):
            patch.setattr(module, "PIECE", 8)
        for name in ("KEYS", "KEYS_ON_CPU"):
            patch.setattr(cache, name, 16)
        patch.setattr(compiled, "ON_CPU", Sizes(256, 1, 1))
        yield


def make_engine(
    weights, *, config=CONFIG, slots=4, eos_ids=NO_EOS, sampling=GREEDY, **spread
) -> Engine:
    return Engine(
        weights,
        config,
        dtype=jnp.float32,
        eos_ids=eos_ids,
        max_length=MAX_LENGTH,
        slots=slots,
        sampling=sampling,
        **spread,
    )


def full_forward(weights, config=CONFIG):
    """A function of (tokens [B, MAX_LENGTH], lengths [B]): last logits of each row."""

    def last_logits(tokens_BT, lengths_B):
        positions = jnp.broadcast_to(jnp.arange(MAX_LENGTH), tokens_BT.shape)
        segments = (positions < lengths_B[:, None]).astype(int)
        model = Llama(weights, config)
        hidden = model.hidden(tokens_BT, positions, segments)
        return model.logits(hidden[jnp.arange(len(lengths_B)), lengths_B - 1])

    return last_logits


def pad(rows) -> np.ndarray:
    return np.array([[*row, *[0] * (MAX_LENGTH - len(row))] for row in rows])


def recompute(weights, requests, sampling=GREEDY, config=CONFIG) -> dict[int, list[int]]:
    """Each request's ids up to its limit, EOS or not, by full forward passes without a cache."""
    rows = [list(request.prompt) for request in requests]
    ends = [min(len(r.prompt) + r.max_new_tokens, MAX_LENGTH) for r in requests]
    settings = settings_of([sampling] * len(requests), [r.index for r in requests])

    @jax.jit
    def next_tokens(tokens_BT, lengths_B, counts_BV):
        logits_BV = full_forward(weights, config)(tokens_BT, lengths_B)
        bias = jnp.zeros(logits_BV.shape)
        return sample(logits_BV, lengths_B, counts_BV, bias, settings)

    while any(len(row) < end for row, end in zip(rows, ends, strict=True)):
        counts = np.array([np.bincount(row, minlength=config.vocab_size) for row in rows])
        tokens = next_tokens(pad(rows), np.array([len(row) for row in rows]), counts)
        for row, end, token in zip(rows, ends, tokens.tolist(), strict=True):
            if len(row) < end:
                row.append(token)
    return {r.index: row[len(r.prompt) :] for r, row in zip(requests, rows, strict=True)}


def cut_at_eos(free: dict[int, list[int]], eos_ids=NO_EOS) -> dict[int, Answer]:
    """The answers that follow from unbounded ids where any of `eos_ids` ends one."""
    answers = {}
    for index, ids in free.items():
        at = next((i for i, token in enumerate(ids) if token in eos_ids), None)
        answers[index] = Answer(index, ids[:at], "length" if at is None else "stop")
    return answers


def answers_of(engine: Engine, requests, burst: int = BURST, **kwargs) -> dict[int, Answer]:
    engine.burst = burst
    answers = list(engine.run(requests, **kwargs))
    assert len(answers) == len(requests), "one answer for each request"
    return {answer.index: answer for answer in answers}


@pytest.fixture(scope="module")
def free(weights):
    return {sampling: recompute(weights, REQUESTS, sampling) for sampling in (GREEDY, SAMPLED)}


@pytest.fixture(scope="module")
def cases(weights, free):
    """(sampling, slots) -> an engine with two EOS ids, and what it must answer."""
    eos_ids = {
        GREEDY: (free[GREEDY][16][0], free[GREEDY][10][6]),
        SAMPLED: (free[SAMPLED][27][0], free[SAMPLED][12][1]),
    }

    def case(sampling, slots):
        return make_engine(
            weights, slots=slots, eos_ids=eos_ids[sampling], sampling=sampling
        ), cut_at_eos(free[sampling], eos_ids[sampling])

    return functools.cache(case)


# The cache


def test_cached_decoding_is_full_recomputation(weights, free):
    # Prompts of 7, 2 and 17 tokens in two slots; the last two rows end in the same step.
    limits = {1: 50, 10: 10, 5: 40}
    requests = [dataclasses.replace(REQUESTS[i], max_new_tokens=n) for i, n in limits.items()]
    answers = answers_of(make_engine(weights, slots=2), requests, burst=4)
    for request in requests:
        ids = free[GREEDY][request.index][: request.max_new_tokens]
        assert answers[request.index] == Answer(request.index, ids, "length")


def test_an_unusual_model_decodes_as_it_recomputes():
    config = dataclasses.replace(
        CONFIG,
        num_key_value_heads=1,
        head_dim=16,
        rope_scaling=RopeScaling("llama3", 4.0, 1.0, 4.0, original_max_position_embeddings=16),
        tie_word_embeddings=True,
        attention_bias=True,
        mlp_bias=True,
    )
    tree = random_weights(config, seed=1)
    requests = make_requests([(7, 24), (20, 20)])
    answers = answers_of(make_engine(tree, config=config, slots=1), requests)
    assert answers == cut_at_eos(recompute(tree, requests, config=config))


# Neighbours


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_the_requests_end_in_every_way(cases, sampling):
    _, expected = cases(sampling, 3)
    stops = [len(a.ids) for a in expected.values() if a.finish_reason == "stop"]
    at_length = [r for r in REQUESTS if expected[r.index].finish_reason == "length"]
    assert 0 in stops, "EOS as the first token"
    assert any(n > 2 for n in stops), "EOS in the middle"
    assert any(r.max_new_tokens == 1 for r in at_length), "a limit of one token"
    full = [r for r in at_length if len(r.prompt) + len(expected[r.index].ids) == MAX_LENGTH]
    assert any(len(r.prompt) < 50 for r in full), "max_length reached by decoding"
    assert any(len(r.prompt) == MAX_LENGTH - 1 for r in full), "room for one token only"
    assert len(REQUESTS) > 16, "more requests than slots"


SLOW = pytest.mark.slow  # each number of rows is a compilation


@pytest.mark.parametrize(
    ("sampling", "slots"),
    [(GREEDY, 1), (GREEDY, 2), (GREEDY, 3), (GREEDY, 16)]
    + [(SAMPLED, 1), (SAMPLED, 3), pytest.param(SAMPLED, 16, marks=SLOW)],
    ids=lambda value: {GREEDY: "greedy", SAMPLED: "sampled"}.get(value, value),
)
def test_an_answer_does_not_depend_on_its_neighbours(cases, sampling, slots):
    engine, expected = cases(sampling, slots)
    assert answers_of(engine, REQUESTS) == expected
    for burst in (1, 5):
        shuffled = random.Random(slots + burst).sample(REQUESTS, len(REQUESTS))
        assert answers_of(engine, shuffled, burst=burst) == expected


def test_fewer_requests_than_slots(cases):
    engine, expected = cases(GREEDY, 16)
    for request in REQUESTS[:3]:
        assert answers_of(engine, [request]) == {request.index: expected[request.index]}
    assert answers_of(engine, REQUESTS[:3]) == {r.index: expected[r.index] for r in REQUESTS[:3]}
    assert list(engine.run([])) == []


def test_the_batch_shrinks_to_what_is_busy(cases, monkeypatch):
    engine, expected = cases(GREEDY, 16)
    sizes, call = [], Compiled.__call__

    def record(self, name, size, *arguments):
        sizes.append(size if name == "decode" else 16)
        return call(self, name, size, *arguments)

    monkeypatch.setattr(Compiled, "__call__", record)
    assert answers_of(engine, REQUESTS, burst=1) == expected
    shrinking = sizes[next(i for i, size in enumerate(sizes) if size < 16) :]
    assert {1, 4, 8} <= set(shrinking)


def test_a_long_answer_does_not_hold_up_the_others(cases):
    engine, expected = cases(GREEDY, 2)
    long = REQUESTS[1]
    assert len(expected[long.index].ids) > 40
    # Looked at after every token: what ends within one burst comes in the order of the slots.
    assert [*answers_of(engine, [long, *REQUESTS[2:5]], burst=1)][-1] == long.index


@pytest.mark.parametrize("shared", [13, 57])
def test_a_prefix_of_any_length_is_copied(cases, monkeypatch, shared):
    """57 of 59 tokens: a piece that begins there would end behind the cache."""
    engine, expected = cases(GREEDY, 2)
    request, starts, call = REQUESTS[7], [], Compiled.__call__
    other = [*request.prompt[:shared], (request.prompt[shared] + 1) % CONFIG.vocab_size]
    answers_of(engine, [Request(99, other, 1)])

    def record(self, name, size, *arguments):
        starts.extend(arguments[2]["start"].tolist() if name == "prefill" else [])
        return call(self, name, size, *arguments)

    monkeypatch.setattr(Compiled, "__call__", record)
    assert answers_of(engine, [request]) == {request.index: expected[request.index]}
    assert min(starts) == min(shared, 56)


RULES = common.sharding().rules.to_dict()


@pytest.mark.parametrize("sizes", [(4, 1, 2), pytest.param((2, 2, 2), marks=SLOW)])
def test_the_answers_are_the_same_on_a_mesh(weights, cases, sizes):
    engine, expected = cases(GREEDY, 3)
    sharding_config = sharding.ShardingConfig(*sizes, RULES, allow_replicated="")
    mesh = sharding.make_mesh(sharding_config)
    spread = jax.device_put(weights, sharding.param_shardings(CONFIG, mesh, sharding_config))
    on_mesh = make_engine(spread, slots=8, eos_ids=engine.eos_ids, mesh=mesh, rules=RULES)
    assert answers_of(on_mesh, REQUESTS) == expected
    few = REQUESTS[:3]  # fewer than the four groups of rows
    assert answers_of(on_mesh, few) == {r.index: expected[r.index] for r in few}


def test_the_cache_lies_where_it_is_planned(weights):
    """`trace` describes the state that a run holds: shapes, dtypes and shardings."""
    sharding_config = sharding.ShardingConfig(4, 1, 2, RULES, allow_replicated="")
    mesh = sharding.make_mesh(sharding_config)
    spread = jax.device_put(weights, sharding.param_shardings(CONFIG, mesh, sharding_config))
    engine = make_engine(spread, slots=4, mesh=mesh, rules=RULES)
    prefill, decode = engine.trace()
    answers = list(engine.run([Request(i, [1] * 20, 40) for i in range(4)]))
    assert [len(answer.ids) for answer in answers] == [40] * 4
    for planned, name in itertools.product(
        (prefill.out_info[0], decode.out_info[0]), ("k", "v", "counts", "bias")
    ):
        held = engine._state[name]
        assert (held.shape, held.dtype) == (planned[name].shape, planned[name].dtype), name
        assert held.sharding.is_equivalent_to(planned[name].sharding, held.ndim), name
    assert engine._state["k"].sharding.shard_shape(engine._state["k"].shape) == (2, 1, 1, 64, 8)


def test_slots_must_divide_over_the_groups(weights):
    mesh = sharding.make_mesh(sharding.ShardingConfig(2, 2, 2, RULES, allow_replicated=""))
    with pytest.raises(ValueError, match=r"6 slots cannot be split evenly over 4 .*; choose"):
        make_engine(weights, slots=6, mesh=mesh, rules=RULES)


# Endings


def test_eos_as_the_last_token_allowed_is_a_stop(cases):
    engine, expected = cases(GREEDY, 3)
    index, ids = next(
        (a.index, a.ids)
        for a in expected.values()
        if a.finish_reason == "stop" and len(a.ids) > 2  # shorter than its limit
    )
    request = REQUESTS[index - 10]
    with_eos = dataclasses.replace(request, max_new_tokens=len(ids) + 1)
    without = dataclasses.replace(request, max_new_tokens=len(ids))
    assert answers_of(engine, [with_eos])[index] == Answer(index, ids, "stop")
    assert answers_of(engine, [without])[index] == Answer(index, ids, "length")


def test_stop_early_ends_one_answer_and_no_other(cases):
    engine, expected = cases(GREEDY, 3)
    token = expected[11].ids[20]
    told = []

    def stop_early(ids):
        told.append(ids)
        return token in ids

    answers = answers_of(engine, REQUESTS, stop_early=stop_early, burst=4)
    stopped = 0
    for index, answer in answers.items():
        whole = expected[index]
        if token in answer.ids and whole.finish_reason == "length":
            stopped += 1
            assert answer.finish_reason == "stop"
            assert answer.ids == whole.ids[: len(answer.ids)]
        elif token not in whole.ids:
            assert answer == whole
    assert stopped and len(answers[11].ids) <= whole_burst(expected[11].ids.index(token), 4)
    assert all(ids and set(ids).isdisjoint(engine.eos_ids) for ids in told)


def whole_burst(at: int, burst: int) -> int:
    """Most ids there can be when a token at `at` is looked at: its burst is finished first."""
    return at + 1 + burst


# Against transformers


@pytest.fixture(scope="module")
def hf_model(weights):
    torch = pytest.importorskip("torch", reason="parity with transformers needs torch")
    transformers = pytest.importorskip("transformers", reason="parity needs transformers")
    torch.set_num_threads(1)  # more only wait for each other on a model of this size
    hf = transformers.LlamaConfig.from_dict(CONFIG.to_hf())
    model = transformers.LlamaForCausalLM(hf).eval()
    tensors = params_to_hf(weights, CONFIG)
    model.load_state_dict({key: torch.tensor(np.array(tensor)) for key, tensor in tensors})
    return model


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_answers_are_those_of_transformers(hf_model, weights, cases, penalty):
    import torch

    engine, _ = cases(GREEDY, 1)
    sampling = Sampling(repetition_penalty=penalty)
    requests = [dataclasses.replace(request, sampling=sampling) for request in REQUESTS[:8]]
    answers = answers_of(engine, requests)
    for request in requests:
        prompt = torch.tensor([request.prompt])
        generated = hf_model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=min(request.max_new_tokens, MAX_LENGTH - len(request.prompt)),
            eos_token_id=list(engine.eos_ids),
            pad_token_id=0,
            repetition_penalty=penalty,
        )[0, len(request.prompt) :].tolist()
        assert (
            answers[request.index]
            == cut_at_eos({request.index: generated}, engine.eos_ids)[request.index]
        )


@pytest.fixture(scope="module")
def other_seed(weights):
    """An engine that samples like SAMPLED, with another seed and without EOS."""
    sampling = dataclasses.replace(SAMPLED, seed=SAMPLED.seed + 1)
    return make_engine(weights, slots=1, sampling=sampling)


def test_the_seed_decides(free, other_seed):
    requests = [dataclasses.replace(r, max_new_tokens=8) for r in REQUESTS[:3]]
    answers = answers_of(other_seed, requests)
    assert answers_of(other_seed, requests) == answers
    for request in requests:
        assert answers[request.index].ids != free[SAMPLED][request.index][:8]


def test_equal_prompts_get_answers_of_their_own(weights, other_seed):
    """One prompt asked 200 times: first tokens are spread as the model's probabilities are."""
    prompt = REQUESTS[4].prompt
    answers = answers_of(other_seed, [Request(i, prompt, 1) for i in range(200)])
    drawn = np.array([answer.ids[0] for answer in answers.values()])
    forward = jax.jit(full_forward(weights))
    logits = np.array(forward(pad([prompt]), np.array([len(prompt)]))[0])
    seen = np.unique(prompt)
    factor = np.where(logits[seen] < 0, SAMPLED.repetition_penalty, 1 / SAMPLED.repetition_penalty)
    logits[seen] *= factor
    kept, shares = shares_of(logits, SAMPLED)
    assert len(kept) >= 4
    assert_drawn_from(drawn, kept, shares)


# Errors


@pytest.mark.parametrize("length", [60, 75])
def test_a_prompt_must_leave_room(weights, length):
    requests = [REQUESTS[0], Request(77, [1] * length, 5)]
    with pytest.raises(ValueError, match=f"77 is {length} tokens.*within max_length 60; raise"):
        next(make_engine(weights).run(requests))


@pytest.mark.parametrize(("prompt", "new"), [([], 5), ([1, 2], 0), ([1, 2], -1)])
def test_a_request_asks_something_and_for_something(prompt, new):
    with pytest.raises(ValueError, match="request 77 requires a prompt of at least one token and"):
        Request(77, prompt, new)


def test_a_burst_has_at_least_one_step(weights):
    with pytest.raises(ValueError, match="burst must be at least 1"):
        make_engine(weights, burst=0)

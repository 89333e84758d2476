"""An engine stepped by hand, as a server does: settings of each request, log-probabilities,
cancellation, shared prefixes, invariance."""

import dataclasses
import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from alpacare_jax.distributed import sharding
from alpacare_jax.inference import cache, compiled, ragged_attention, rows
from alpacare_jax.inference.compiled import Compiled
from alpacare_jax.inference.requests import Progress, Request
from alpacare_jax.inference.rows import PIECE
from alpacare_jax.inference.sampling import Sampling
from alpacare_jax.model import layers, projections
from tests.alpacare_jax.inference.test_engine import (
    CONFIG,
    MAX_LENGTH,
    REQUESTS,
    RULES,
    full_forward,
    make_engine,
    pad,
    random_weights,
    recompute,
)

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.fixture(scope="module")
def weights():
    return random_weights(CONFIG, seed=0)


@pytest.fixture(scope="module")
def engine(weights):
    """Two slots, and chunks of one size: few programs to compile."""
    return make_engine(weights, slots=2, invariant=True)


def finish(engine, requests) -> dict[int, list[Progress]]:
    """What is reported of each request until the engine is idle."""
    for request in requests:
        engine.submit(request)
    found: dict[int, list[Progress]] = {request.index: [] for request in requests}
    while engine.busy:
        for progress in engine.step():
            found[progress.index].append(progress)
    return found


def ids_of(reported: list[Progress]) -> list[int]:
    return [token for progress in reported for token in progress.ids]


@pytest.fixture(scope="module")
def exact(weights):
    """Function of ids: log-probabilities [len(ids), V] of what follows each prefix."""
    forward = jax.jit(full_forward(weights))

    def logprobs(ids):
        rows = pad([ids] * len(ids))
        logits = np.asarray(forward(rows, np.arange(1, len(ids) + 1)), np.float64)
        return scipy.special.log_softmax(logits, axis=-1)

    return logprobs


def test_logprobs_of_prompt_and_answer(engine, exact):
    prompt = REQUESTS[5].prompt
    request = Request(1, prompt, 9, logprobs=4, prompt_logprobs=True)
    reported = finish(engine, [request, dataclasses.replace(REQUESTS[0], index=2)])
    first, ids = reported[1][0], ids_of(reported[1])
    assert all(progress.prompt_logprobs is None for progress in reported[1][1:])
    assert first.prompt_logprobs is not None and first.prompt_logprobs[0] is None
    found = first.prompt_logprobs[1:] + [p for each in reported[1] for p in each.logprobs]
    assert len(found) == len(prompt) - 1 + len(ids) == len(prompt) + 8
    want = exact([*prompt, *ids])
    for i, (score, token) in enumerate(zip(found, [*prompt, *ids][1:], strict=True)):
        assert score is not None
        assert score.logprob == pytest.approx(want[i, token], abs=1e-4)
        assert [t for t, _ in score.top] == np.argsort(-want[i])[:4].tolist()
        np.testing.assert_allclose([p for _, p in score.top], np.sort(-want[i])[:4] * -1, atol=1e-4)
    assert not any(progress.logprobs for progress in reported[2]), "not asked for"


def test_logprobs_are_those_of_transformers(engine, weights):
    torch = pytest.importorskip("torch", reason="parity with transformers needs torch")
    transformers = pytest.importorskip("transformers", reason="parity needs transformers")
    from tests.support.hf_folders import params_to_hf

    model = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_dict(CONFIG.to_hf()))
    tensors = params_to_hf(weights, CONFIG)
    model.eval().load_state_dict({key: torch.tensor(np.array(x)) for key, x in tensors})
    request = dataclasses.replace(REQUESTS[1], logprobs=0, prompt_logprobs=True)
    reported = finish(engine, [request])[request.index]
    ids = [*request.prompt, *ids_of(reported)]
    with torch.no_grad():
        want = torch.log_softmax(model(torch.tensor([ids])).logits[0], dim=-1)
    scores = [*reported[0].prompt_logprobs[1:], *(p for each in reported for p in each.logprobs)]
    theirs = [float(want[i, token]) for i, token in enumerate(ids[1:])]
    np.testing.assert_allclose([score.logprob for score in scores], theirs, atol=1e-4)
    assert len(ids) == MAX_LENGTH


def test_a_prompt_may_be_scored_alone(engine, exact):
    request = Request(1, REQUESTS[7].prompt + [5], 0, logprobs=1, prompt_logprobs=True)
    (progress,) = finish(engine, [request])[1]
    assert (progress.ids, progress.finish_reason) == ([], "length")
    assert len(request.prompt) == MAX_LENGTH == len(progress.prompt_logprobs or [])
    want = exact(request.prompt)
    last = progress.prompt_logprobs[-1]
    assert last is not None and last.logprob == pytest.approx(want[-2, 5], abs=1e-4)
    with pytest.raises(ValueError, match="max_new_tokens of at least 1"):
        Request(1, [5], 0)


def adjusted(exact, prompt, count, sampling: Sampling) -> list[int]:
    """Greedy ids under OpenAI's penalties and a bias, by hand."""
    ids = list(prompt)
    for _ in range(count):
        scores = exact(ids)[-1].copy()
        for token, bias in sampling.logit_bias.items():
            scores[token] += bias
        answer = ids[len(prompt) :]
        for token in set(answer):
            repeated = sampling.frequency_penalty * answer.count(token)
            scores[token] -= sampling.presence_penalty + repeated
        ids.append(int(scores.argmax()))
    return ids[len(prompt) :]


def test_each_request_has_settings_of_its_own(engine, exact):
    prompt = REQUESTS[2].prompt
    greedy = adjusted(exact, prompt, 12, Sampling())
    settings = [
        Sampling(presence_penalty=2.0, frequency_penalty=3.0),
        Sampling(logit_bias={greedy[0]: -100.0, 7: 2.5}),
        Sampling(),
    ]
    requests = [Request(i, prompt, 12, sampling=each) for i, each in enumerate(settings)]
    want = [adjusted(exact, prompt, 12, each) for each in settings]
    assert len({tuple(ids) for ids in want}) == 3, "the settings must matter"
    for _ in range(2):  # slots were used by others before
        reported = finish(engine, requests)
        assert [ids_of(reported[i]) for i in range(3)] == want
        requests.reverse()


def test_a_penalty_counts_every_token_once(engine):
    """The first token, too, which is drawn where the prompt ends."""
    sampling = Sampling(frequency_penalty=1000, logit_bias={7: 100_000, 9: 99_500})
    reported = finish(engine, [Request(1, [3, 4], 8, sampling)])
    assert ids_of(reported[1]) == [7, 9] * 4


def test_draws_follow_seed_and_stream_not_the_index(engine):
    warm = Sampling(temperature=1.5, seed=4)

    def answer(index, **changes):
        request = Request(index, REQUESTS[4].prompt, 20, sampling=warm)
        return ids_of(finish(engine, [dataclasses.replace(request, **changes)])[index])

    assert answer(5, draw=0) == answer(6, draw=0)
    assert answer(5) != answer(6)
    assert answer(5, draw=0) != answer(5, draw=0, sampling=dataclasses.replace(warm, seed=5))


def test_cancelled_requests_leave_the_others_alone(engine):
    whole = finish(engine, REQUESTS[:4])
    for request in REQUESTS[:4]:
        engine.submit(request)
    seen = engine.step()
    assert len({progress.index for progress in seen}) <= 2, "two slots"
    running, waiting = REQUESTS[1].index, REQUESTS[3].index
    engine.cancel(running)
    engine.cancel(waiting)
    engine.cancel(12345)  # unknown, or ended a moment ago
    while engine.busy:
        seen += engine.step()
    assert waiting not in {progress.index for progress in seen}
    for index in (REQUESTS[0].index, REQUESTS[2].index):
        assert ids_of([p for p in seen if p.index == index]) == ids_of(whole[index])
    assert all(p.finish_reason is None for p in seen if p.index == running)


@pytest.fixture
def calls(monkeypatch) -> list[tuple]:
    """The programs that engines run: (name, size, *arguments)."""
    made, call = [], Compiled.__call__

    def record(self, *arguments):
        made.append(arguments)
        return call(self, *arguments)

    monkeypatch.setattr(Compiled, "__call__", record)
    return made


def test_running_answers_go_on_while_prompts_are_prefilled(weights, calls):
    engine = make_engine(weights, slots=3, chunk=PIECE)
    short, *long = [Request(i, [3 + i] * n, 40) for i, n in enumerate((4, 50, 50))]
    alone = ids_of(finish(engine, [short])[0])
    calls.clear()
    engine.submit(short)
    reported = engine.step()
    for request in long:
        engine.submit(request)
    while 2 not in {p.index for p in reported}:
        before = len(reported)
        reported += engine.step()
        assert [p.index for p in reported[before:]].count(short.index) == 1, "a token a chunk"
    assert [name for name, *_ in calls] == ["prefill"] * 5, "two chunks for each of the two"
    while engine.busy:
        reported += engine.step()
    assert ids_of([p for p in reported if p.index == short.index]) == alone


def test_chunks_fill_their_programs(weights, calls, monkeypatch):
    """Programs for 6, 3, 2 and 1 pieces; the one that scores is for 6."""
    monkeypatch.setattr(compiled, "ON_CPU", compiled.Sizes(256, 1, 3))
    engine = make_engine(weights, slots=3)
    prompts = [[3 + i] * 50 for i in range(2)]
    finish(engine, [Request(i, prompt, 1) for i, prompt in enumerate(prompts)])
    assert [(name, size) for name, size, *_ in calls] == [("prefill", 3), ("prefill", 1)]
    calls.clear()
    scored = [Request(i, prompt, 0, prompt_logprobs=True) for i, prompt in enumerate(prompts)]
    finish(engine, scored)
    assert [(name, size) for name, size, *_ in calls] == [("score", 6)]


def test_bursts_and_chunks_take_turns_where_they_are_apart(weights, calls):
    engine = make_engine(weights, slots=3, invariant=True, chunk=PIECE, burst=2)
    short, *long = [Request(i, [3 + i] * n, 40) for i, n in enumerate((4, 50, 50))]
    engine.submit(short)
    assert [p.ids for p in engine.step()]
    for request in long:
        engine.submit(request)
    reported = []
    while 2 not in {p.index for p in reported}:
        reported += engine.step()
    assert [name for name, *_ in calls] == [*["prefill", "decode"] * 4, "prefill"]
    assert [p.index for p in reported].count(short.index) == 4, "every burst adds to it"


def test_a_prefix_that_a_slot_holds_is_not_computed_again(weights, calls):
    engine = make_engine(weights, slots=2)
    shared = np.random.default_rng(1).integers(0, 64, PIECE).tolist()
    requests = [Request(i, [*shared, *REQUESTS[i].prompt[:9]], 9) for i in range(3)]
    apart = {r.index: finish(make_engine(weights, slots=2), [r])[r.index] for r in requests}
    calls.clear()
    together = finish(engine, requests)
    prefilled = [pieces["start"].tolist() for name, *_, pieces, _ in calls if name == "prefill"]
    starts = [start for starts in prefilled for start in set(starts)]
    assert starts.count(0) == 1, "the second waits for the first, the third finds it"
    assert {i: ids_of(each) for i, each in together.items()} == {
        i: ids_of(each) for i, each in apart.items()
    }


def test_other_weights_use_no_keys_of_the_earlier_ones(engine, weights):
    request = Request(1, [*range(2, 2 + PIECE), 5, 6], 6)
    other = random_weights(CONFIG, seed=1)
    before = ids_of(finish(engine, [request])[1])
    engine.use(other)
    after = ids_of(finish(engine, [request])[1])
    engine.use(weights)
    expected = recompute(other, [request], Sampling())[1]
    assert after == expected[: len(after)] != before and after
    assert ids_of(finish(engine, [request])[1]) == before


def test_layers_taken_apart_give_the_same_answers(engine, weights):
    """As `loading` gives them to GPUs; the stacked arrays are freed."""
    stacked = jax.tree.map(jnp.array, weights)
    apart = weights | {"layers": layers.unstack(stacked["layers"])}
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(stacked["layers"]))
    other = make_engine(apart, slots=2, invariant=True)
    want, got = finish(engine, REQUESTS[:2]), finish(other, REQUESTS[:2])
    assert list(map(ids_of, got.values())) == list(map(ids_of, want.values()))


def test_an_invariant_engine_gives_the_same_bits_alone_and_among_others(weights):
    engine = make_engine(weights, slots=4, invariant=True)
    asked = dataclasses.replace(REQUESTS[6], logprobs=0)
    (alone,) = [finish(engine, [asked])[asked.index]]
    others = [r for r in REQUESTS[:9] if r.index != asked.index]
    among = finish(engine, [*others[:3], asked, *others[3:]])[asked.index]
    bits = [[score.logprob for p in each for score in p.logprobs] for each in (alone, among)]
    assert ids_of(alone) == ids_of(among) and bits[0] == bits[1] and bits[0]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.8, top_k=3, top_p=0.9)])
def test_non_finite_logits_end_an_answer(engine, weights, sampling):
    other = Request(4, [4, 6], 4, sampling)
    want = ids_of(finish(engine, [other])[4])
    engine.use(jax.tree.map(lambda leaf: leaf * jnp.nan, weights))
    request = Request(3, [4, 6] * 25, 2, sampling)  # its keys are NaN, beyond those of `other`
    (progress,) = finish(engine, [request])[3]
    assert (progress.ids, progress.finish_reason) == ([], "not_finite")
    with pytest.raises(ValueError, match="answer 3: the model's logits are NaN or infinite: its"):
        list(engine.run([request]))
    engine.use(weights)
    assert ids_of(finish(engine, [other])[4]) == want, "in the same slot"


@pytest.mark.parametrize("what", ["prompt", "bias"])
def test_ids_must_be_the_models(engine, what):
    beyond = CONFIG.vocab_size
    request = Request(3, [1, beyond] if what == "prompt" else [1], 2)
    if what == "bias":
        request = dataclasses.replace(request, sampling=Sampling(logit_bias={beyond: 1.0}))
    with pytest.raises(ValueError, match="request 3 names a token id outside 0 to 63"):
        engine.submit(request)
    assert not engine.busy


@pytest.mark.parametrize("program", ["prefill", "decode"])
def test_programs_copy_neither_weights_nor_cache(weights, program):
    """What XLA for CPUs did once a step: slices out of the stack, transposes of o_proj."""
    apart = weights | {"layers": layers.unstack(jax.tree.map(jnp.copy, weights["layers"]))}
    programs = make_engine(apart)._programs
    state = programs.programs.empty.eval_shape()
    given = rows.burst_arrays({0: rows.BLANK}, 4), np.int32(1), np.int32(0)
    if program == "prefill":
        given = programs.chunk_arguments([], 2, {})
        assert given[1] is not None, "with rows that decode"
    text = programs.programs.jitted[program].lower(apart, state, *given).compile().as_text()
    made = re.findall(
        r"= \w+\[([\d,]+)\]\S* (?!parameter|get-tuple-element|bitcast)([\w-]+)\(", text
    )
    assert made, "as XLA writes its programs"
    sizes, shapes = CONFIG.sizes, set()
    for axes in projections.PROJECTIONS.values():
        ends = [[sizes[axis] for axis in end] for end in axes]
        for shape in (itertools.chain(*ends), map(math.prod, ends)):  # as stored, and as a matrix
            shapes.add(",".join(map(str, shape)))
    assert not shapes & {shape for shape, _ in made}
    cached = ",".join(map(str, state["k"].shape))
    assert ("copy", cached) not in made and ("transpose", cached) not in made


def test_every_program_is_compiled_at_start(engine, monkeypatch):
    lines: list[str] = []
    engine.compile(lines.append)
    assert lines == [f"compiled {i} of 5 programs" for i in range(1, 6)]
    monkeypatch.setattr(engine._programs.programs, "jitted", {})  # nothing else can be compiled
    sampling = Sampling(temperature=0.8, repetition_penalty=1.1)
    requests = [dataclasses.replace(REQUESTS[1], sampling=sampling), *REQUESTS[2:5]]
    scored = Request(99, REQUESTS[1].prompt, 1, logprobs=2, prompt_logprobs=True)
    assert all(
        reported[-1].finish_reason for reported in finish(engine, [*requests, scored]).values()
    )


# The kernel of GPUs, emulated

ACCESS = cache.Access(128, "index")


@pytest.mark.parametrize(("T", "K", "G"), [(1, 2, 2), (8, 2, 1)])
def test_ragged_attention_is_attention(T, K, G):
    draw, (L, B, S, H), R = np.random.default_rng(0), (2, 5, 256, 64), 3
    k, v = (jnp.asarray(draw.normal(size=(L, B, K, S, H)), jnp.float32) for _ in "kv")
    q = jnp.asarray(draw.normal(size=(R, T, K * G, H)), jnp.float32)
    rows, starts, layer = jnp.array([3, 0, 4]), jnp.array([70, 0, 200]), jnp.int32(1)
    want = cache.attend(q, {"k": k, "v": v}, layer, rows, starts, ACCESS)
    past = np.arange(S) >= np.asarray(starts + T)[:, None]  # what must not be read
    spoilt = np.array(k)
    for row, hidden in zip(rows.tolist(), past, strict=True):
        spoilt[:, row, :, hidden] = 1e9
    got = ragged_attention.attend(q, jnp.asarray(spoilt), v, layer, rows, starts, interpret=True)
    np.testing.assert_allclose(got, want, atol=1e-5)
    nothing = ragged_attention.attend(q, k, v, layer, rows, starts * 0 - T, interpret=True)
    assert not np.asarray(nothing).any(), "a row without tokens"


@pytest.mark.parametrize("T", [1, 8])
def test_ragged_attention_on_a_mesh_is_attention(T):
    """Rows over two groups of devices, heads over two; a chunk's pieces may be of any rows."""
    draw, (L, B, K, G, S, H) = np.random.default_rng(1), (2, 4, 2, 2, 128, 64)
    k, v = (jnp.asarray(draw.normal(size=(L, B, K, S, H)), jnp.float32) for _ in "kv")
    q = jnp.asarray(draw.normal(size=(3, T, K * G, H)), jnp.float32)
    rows, starts, layer = jnp.array([3, 0, 2]), jnp.array([70, 0, 100]), jnp.int32(1)
    config = sharding.ShardingConfig(2, 1, 2, RULES, allow_replicated="")
    mesh = sharding.make_mesh(config, jax.devices()[:4])
    spread = jax.device_put({"k": k, "v": v}, cache.placement(mesh, RULES))
    assert spread["k"].sharding.shard_shape(k.shape) == (L, B // 2, K // 2, S, H)
    attend = jax.jit(ragged_attention.on_mesh(mesh, RULES["kv_heads"], interpret=True))
    got = attend(q, spread["k"], spread["v"], layer, rows, starts)
    want = cache.attend(q, {"k": k, "v": v}, layer, rows, starts, ACCESS)
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("T", [1, 16])
def test_ragged_attention_is_a_valid_program_of_triton(T, monkeypatch):
    """As far as without a GPU: Triton's own check, which JAX leaves to XLA's compiler."""
    from jax._src.pallas.triton import lowering

    made, lower = [], lowering.lower_jaxpr_to_triton_module

    def checked(*arguments, **options):
        result = lower(*arguments, **options)
        made.append(result.module.operation.verify())
        return result

    monkeypatch.setattr(lowering, "lower_jaxpr_to_triton_module", checked)
    q, k = jnp.zeros((2, T, 4, 64), jnp.bfloat16), jnp.zeros((2, 4, 2, 128, 64), jnp.bfloat16)
    rows = jnp.zeros(2, jnp.int32)
    traced = jax.jit(ragged_attention.attend).trace(q, k, k, jnp.int32(0), rows, rows)
    traced.lower(lowering_platforms=("cuda",))
    assert made == [True]


def test_a_kernel_that_fails_or_differs_is_not_used():
    sizes, emulated = (4, 2, 64), functools.partial(ragged_attention.attend, interpret=True)
    assert ragged_attention.fault(*sizes, jnp.float32, emulated) == ""

    def shifted(q, k, v, *rest):
        return emulated(q, k, jnp.roll(v, 1, axis=3), *rest)

    def broken(*_):
        raise NotImplementedError("no Triton")

    assert "differs from XLA's by" in ragged_attention.fault(*sizes, jnp.float32, shifted)
    assert "does not run here (no Triton)" in ragged_attention.fault(*sizes, jnp.float32, broken)

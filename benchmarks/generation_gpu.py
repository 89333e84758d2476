"""Claim: generation on one GPU reads what its rows hold, at 70 % of what a copy reaches.

    python -m benchmarks.generation_gpu                                       7B, bfloat16, an H200
    python -m benchmarks.generation_gpu --variant=smollm2-135m --layers=1 \
        --slots=4 --prompts=4 --shrink=16

Random weights, no EOS, one process, about two minutes. A line of JSON after each part, so that what
is cut short is not lost:

    copy       the bandwidth of a copy, read and written
    attention  forms of decode attention alone, all layers, rows half full
    compile    seconds until every program is compiled
    step       a decode step with all slots and with half of them, rows half full; its share of the
               copy bandwidth counts the weights once and the keys and values that rows hold; then
               where the time goes, by kind of kernel
    answers    prompts of 40 to 400 tokens, answers of 32 to 384: tokens a second; the second run
               counts
"""

import dataclasses
import functools
import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from alpacare_jax.model.config import VARIANTS
from benchmarks.support import kernels
from common import cli

LENGTH = 1024


def report(part: str, **values: Any) -> None:
    rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()}
    print(json.dumps({"part": part} | rounded), flush=True)


def seconds(work: Callable[[], Any], times: int = 3) -> float:
    """The fastest of some runs, after one that does not count."""
    import jax

    found = []
    for _ in range(times + 1):
        began = time.perf_counter()
        jax.block_until_ready(work())
        found.append(time.perf_counter() - began)
    return min(found[1:])


def copy_rate(shrink: int) -> float:
    """Bytes a second that a copy reads and writes."""
    import jax
    import jax.numpy as jnp

    x = jnp.ones(2**30 // shrink, jnp.float32)
    negate = jax.jit(lambda x: -x)
    rate = 2 * x.nbytes / seconds(lambda: negate(x))
    report("copy", gigabytes_per_second=rate / 1e9)
    return rate


def attention_forms(interpret: bool) -> dict[str, Callable[..., Any]]:
    """Name -> function of (q_RTNH, cache, layer, rows_R, starts_R)."""
    import jax
    import jax.numpy as jnp

    from alpacare_jax.inference import cache, ragged_attention

    def ragged(keys: int, warps: int, stages: int):
        def attend(q, held, layer, rows, starts):
            options = {"keys": keys, "warps": warps, "stages": stages, "interpret": interpret}
            return ragged_attention.attend(q, held["k"], held["v"], layer, rows, starts, **options)

        return attend

    def rectangle(q, held, layer, rows, starts, implementation):
        k, v = (jnp.swapaxes(held[name][layer], 1, 2) for name in ("k", "v"))
        options = {"implementation": implementation, "key_value_seq_lengths": starts + 1}
        if implementation == "cudnn":
            options["query_seq_lengths"] = jnp.ones_like(starts)
        return jax.nn.dot_product_attention(q, k, v, **options)

    def blocks(q, held, layer, rows, starts):
        return cache.attend(q, held, layer, None, starts, cache.access("gpu", False))

    forms = {
        f"ragged keys={keys} warps={warps} stages={stages}": ragged(keys, warps, stages)
        for keys, warps, stages in [(64, 4, 3), (32, 4, 3), (128, 4, 2), (64, 2, 3), (32, 2, 4)]
    }
    forms["xla, blocks up to the longest row"] = blocks
    forms["xla, rectangle"] = functools.partial(rectangle, implementation="xla")
    if not interpret:
        forms["cudnn, lengths"] = functools.partial(rectangle, implementation="cudnn")
    return forms


def measure_attention(config: Any, slots: int, rate: float, interpret: bool) -> None:
    """Reports how long each form takes."""
    import jax
    import jax.numpy as jnp

    from alpacare_jax.inference import cache

    dtype = jnp.bfloat16
    held = jax.jit(lambda: cache.empty(config, slots, LENGTH, dtype))()
    starts = jnp.linspace(LENGTH // 4, 3 * LENGTH // 4, slots).astype(jnp.int32)
    q = jnp.ones((slots, 1, config.num_attention_heads, config.head_dim), dtype)
    per_token = 2 * math.prod(held["k"].shape) // slots // held["k"].shape[3] * dtype.dtype.itemsize
    least = float(jnp.sum(starts + 1)) * per_token
    for name, form in attention_forms(interpret).items():

        @jax.jit
        def all_layers(q, held, form=form):
            def layer(q, i):
                return q + form(q, held, i, jnp.arange(slots), starts), None

            return jax.lax.scan(layer, q, jnp.arange(config.num_hidden_layers))[0]

        try:
            took = seconds(functools.partial(all_layers, q, held))
        except Exception as error:  # noqa: BLE001 - an unsupported form must not end the rest
            report("attention", form=name, failed=str(error)[:300])
            continue
        share = least / took / rate
        report("attention", form=name, milliseconds=1e3 * took, share_of_copy=share)


def random_params(config: Any) -> Any:
    import jax
    import jax.numpy as jnp

    from alpacare_jax.model import params

    keys = iter(jax.random.split(jax.random.key(0), 100))

    @functools.partial(jax.jit, static_argnums=1)
    def normal(key, shape):
        return 0.02 * jax.random.normal(key, shape, jnp.bfloat16)

    return params.build_tree(config, lambda w: normal(next(keys), params.weight_shape(w, config)))


def measure_steps(engine: Any, slots: Sequence[int], weight_bytes: int, rate: float) -> None:
    """Decode steps with so many slots, rows half full, and where their time goes."""
    import jax

    from alpacare_jax.inference import rows
    from alpacare_jax.inference.programs import BURST

    state = engine._device_state()
    cached = sum(state[name].nbytes for name in ("k", "v"))
    per_token = cached / engine.slots / state["k"].shape[3]
    for count in slots:
        arrays, burst, full = rows.burst_arrays({}, count), np.int32(BURST), np.int32(0)
        lengths = np.linspace(LENGTH // 4, 3 * LENGTH // 4, count).astype(np.int32)
        arrays |= {"active": np.ones(count, bool), "positions": lengths}
        arrays["left"] = np.full(count, LENGTH, np.int32)

        def run(arrays=arrays, burst=burst, full=full, count=count):
            engine._state, out = engine._programs(
                "decode", count, engine.params, engine._device_state(), arrays, burst, full
            )
            return out

        step = seconds(run) / int(burst)
        held = weight_bytes + float(lengths.sum() + count * (int(burst) / 2)) * per_token
        report(
            "step",
            slots=count,
            milliseconds=1e3 * step,
            tokens_per_second=count / step,
            share_of_copy=held / step / rate,
            whole_cache_gb=cached / 1e9,
        )
        if jax.default_backend() == "gpu":
            with tempfile.TemporaryDirectory() as folder:
                with jax.profiler.trace(folder):
                    jax.block_until_ready(run())
                print("\n".join(kernels.table(*kernels.kernels(Path(folder)))), flush=True)


def measure_answers(engine: Any, count: int, shrink: int) -> None:
    from alpacare_jax.inference.requests import Request

    draw = np.random.default_rng(0)
    vocabulary = engine.config.vocab_size
    for name in ("first", "second"):
        prompts = [
            draw.integers(3, vocabulary, n).tolist()
            for n in draw.integers(40 // shrink, 401 // shrink, count)
        ]
        limits = draw.integers(32 // shrink, 385 // shrink, count).tolist()
        began, lengths = time.perf_counter(), sum(map(len, prompts))
        requests = [Request(i, *each) for i, each in enumerate(zip(prompts, limits, strict=True))]
        tokens = sum(len(answer.ids) for answer in engine.run(requests))
        took = time.perf_counter() - began
        report(
            "answers",
            run=name,
            tokens=tokens,
            prompt_tokens=lengths,
            seconds=took,
            tokens_per_second=tokens / took,
        )


def main(argv: Sequence[str]) -> None:
    del argv
    import jax
    import jax.numpy as jnp

    from alpacare_jax.inference.engine import Engine
    from alpacare_jax.model import layers

    FLAGS = flags.FLAGS
    config, slots = VARIANTS[FLAGS.variant], FLAGS.slots
    if FLAGS.layers:
        config = dataclasses.replace(config, num_hidden_layers=FLAGS.layers)
    on_cpu = jax.default_backend() == "cpu"
    report("device", kind=jax.devices()[0].device_kind, jax=jax.__version__)
    rate = copy_rate(FLAGS.shrink)
    measure_attention(config, slots // 2, rate, on_cpu)
    params = random_params(config)
    params |= {"layers": layers.unstack(params["layers"])}  # as `loading` does on GPUs
    weight_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    engine = Engine(
        params,
        config,
        dtype=jnp.dtype("bfloat16"),
        eos_ids=[-1],
        max_length=LENGTH,
        slots=slots,
    )
    began = time.perf_counter()
    engine.compile(lambda line: None)
    report("compile", seconds=time.perf_counter() - began)
    measure_steps(engine, [slots, slots // 2], weight_bytes, rate)
    measure_answers(engine, FLAGS.prompts, FLAGS.shrink)


if __name__ == "__main__":
    flags.DEFINE_enum("variant", "llama-7b", sorted(VARIANTS), "Shape of the model.")
    flags.DEFINE_integer("layers", 0, "Number of layers; 0: the model's own.")
    flags.DEFINE_integer("slots", 128, "Slots; half of them are measured, too.", lower_bound=2)
    flags.DEFINE_integer("prompts", 192, "Prompts to answer.", lower_bound=1)
    flags.DEFINE_integer("shrink", 1, "Divides prompts and answers, for a trial elsewhere.")
    cli.run(main)

"""FLOP counts against hand and XLA, the peak table, metrics.jsonl across a kill, durations."""

import functools
import json
import os
import sys
import types

import jax
import jax.numpy as jnp
import pytest

from alpacare_jax.model import params
from alpacare_jax.model.config import LlamaConfig
from alpacare_jax.model.llama import Llama
from alpacare_jax.training import metrics
from alpacare_jax.training.metrics import (
    MetricsWriter,
    TensorBoard,
    WeightsAndBiases,
    peak_flops,
    train_flops,
)
from common import extras


def test_train_flops_by_hand():
    config = LlamaConfig(
        vocab_size=10,
        hidden_size=4,
        intermediate_size=6,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    projections = 4 * 4 + 4 * 2 + 4 * 2 + 4 * 4  # q, k, v, o with heads of 2
    layer = projections + 3 * 4 * 6 + 2 * 4  # feed-forward, norms
    weights = 2 * layer + 4  # the final norm
    # One example of 5 tokens, whose last 3 carry loss: 15 pairs of query and key.
    attention = 2 * 2 * 15 * (2 + 2) * 2  # layers, heads, pairs, products q k and p v, flops
    forward = 2 * weights * 5 + attention + 2 * 10 * 4 * 3
    assert train_flops(config, tokens=5, pairs=15, targets=3) == 3 * forward


def test_tied_embeddings_cost_what_untied_ones_do():
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    shape = functools.partial(LlamaConfig, vocab_size=32, num_hidden_layers=1, **sizes)
    counts = {"tokens": 7, "pairs": 28, "targets": 7}
    tied, untied = shape(tie_word_embeddings=True), shape(tie_word_embeddings=False)
    assert train_flops(tied, **counts) == train_flops(untied, **counts) > 0


@pytest.mark.parametrize("kv_heads", [8, 2])
def test_train_flops_against_xla(monkeypatch, kv_heads):
    """XLA counts what it compiles: all pairs, masked ones too, and elementwise work on top."""
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=kv_heads,
    )
    monkeypatch.setattr(jax.lax, "scan", functools.partial(jax.lax.scan, unroll=True))

    def forward(weights, tokens):
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        model = Llama(weights, config)
        return model.logits(model.hidden(tokens, positions, jnp.ones_like(tokens)))

    rows, length = 2, 256
    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    compiled = jax.jit(forward).lower(params.abstract(config), tokens).compile()
    counted = compiled.cost_analysis()["flops"]
    n = rows * length
    expected = train_flops(config, tokens=n, pairs=rows * length**2, targets=n) / 3
    assert counted == pytest.approx(expected, rel=0.01)


def test_an_example_twice_as_long_needs_four_times_the_pairs():
    config = LlamaConfig(100, 64, 128, 3, 4)
    pairs = [n * (n + 1) // 2 for n in (100, 200)]
    short, long = (train_flops(config, 0, count, 0) / (12 * 3 * 4 * 16) for count in pairs)
    assert (short, long) == tuple(pairs)


# The peak


def device(kind):
    return lambda *_: [types.SimpleNamespace(device_kind=kind)]


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),  # not TPU v5, which is v5p
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
    ],
)
def test_the_table_is_read_by_device_kind(monkeypatch, kind, peak):
    monkeypatch.setattr(jax, "devices", device(kind))
    monkeypatch.setattr(metrics, "measure_peak_flops", lambda: pytest.fail("must not measure"))
    assert peak_flops() == (peak, "table")


def test_an_unknown_device_is_measured(monkeypatch):
    monkeypatch.setattr(metrics, "measure_peak_flops", lambda: 8e9)
    monkeypatch.setattr(jax, "devices", device("cpu"))
    monkeypatch.setattr(jax, "local_device_count", lambda: 4)
    assert peak_flops() == (2e9, "measured")  # virtual devices share the machine
    monkeypatch.setattr(jax, "devices", device("Some GPU"))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert peak_flops() == (8e9, "measured")


def test_a_cpu_has_no_peak_to_report_utilisation_of(monkeypatch):
    monkeypatch.setattr(metrics, "peak_flops", lambda: (1e12, "table"))
    assert metrics.known_peak() is None, "these tests run on CPU"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert metrics.known_peak() == (1e12, "table")


@pytest.mark.parametrize(("backend", "products"), [("cpu", 1), ("gpu", 8)])
def test_the_measured_peak_is_that_of_the_best_time(monkeypatch, backend, products):
    """With a clock of our own: products take 4, 2 and 3 s of the 9 s there are."""
    times = iter([0.0, 0.0, 0.0, 4.0, 4.0, 4.0, 6.0, 6.0, 6.0, 9.0, 9.0])
    clock = types.SimpleNamespace(perf_counter=lambda: next(times))
    monkeypatch.setattr(metrics, "time", clock)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert metrics.measure_peak_flops(size=64, seconds=9.0) == products * 2 * 64**3 / 2.0


# metrics.jsonl


def lines_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_each_step_is_a_line_that_can_be_read_at_once(tmp_path):
    writer = MetricsWriter(tmp_path, 0)
    writer.write(1, loss=2.5)
    assert lines_of(tmp_path) == [{"step": 1, "loss": 2.5}]
    writer.write(2, loss=2.25)
    writer.close()
    assert lines_of(tmp_path)[1:] == [{"step": 2, "loss": 2.25}]


def test_a_resumed_run_forgets_what_comes_after_its_checkpoint(tmp_path):
    writer = MetricsWriter(tmp_path, 0)
    for step in range(8):
        writer.write(step, loss=1.0 / (step + 1))
    writer.close()
    before = lines_of(tmp_path)
    writer = MetricsWriter(tmp_path, 5)
    assert lines_of(tmp_path) == before[:6]
    writer.write(6, loss=0.5)
    writer.close()
    assert lines_of(tmp_path) == [*before[:6], {"step": 6, "loss": 0.5}]


@pytest.mark.parametrize(
    "cut",
    [
        b'{"step": 3, "lo',
        b'{"step": 3',
        b"{",
        b'{"loss": 1.0}\n',
        b"\n",
        b"[3]\n",
        b"3\n",
        b'{"step": null}\n',
        b"\xff\x00\n",
    ],
)
def test_a_damaged_line_is_left_out_and_its_steps_are_named(tmp_path, cut, capsys):
    whole = '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n'
    (tmp_path / "metrics.jsonl").write_bytes(whole.encode() + cut)
    MetricsWriter(tmp_path, 2).close()
    assert capsys.readouterr().err == "", "a kill may cut the lines after the checkpoint"
    (tmp_path / "metrics.jsonl").write_bytes(whole.encode() + cut)
    writer = MetricsWriter(tmp_path, 7)
    assert "metrics.jsonl is damaged: it lacks 5 of the 7 steps so far, the first 3;" in (
        capsys.readouterr().err
    )
    writer.write(8, loss=0.5)
    writer.close()
    assert (tmp_path / "metrics.jsonl").read_text() == whole + '{"step": 8, "loss": 0.5}\n'


def test_a_whole_line_without_its_line_end_is_kept(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}')
    writer = MetricsWriter(tmp_path, 1)
    writer.write(2, loss=1.0)
    writer.close()
    assert lines_of(tmp_path) == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]


@pytest.mark.parametrize(
    ("module", "sink"), [("tensorboardX", TensorBoard), ("wandb", WeightsAndBiases)]
)
def test_a_sink_without_its_extra_names_the_remedy(tmp_path, monkeypatch, module, sink):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError) as raised:
        sink(tmp_path, {})
    extra = {"tensorboardX": "tensorboard"}.get(module, module)
    assert extras.advice(raised.value, "train").endswith(f"pip install '.[{extra}]'")


def test_tensorboard_gets_the_numbers(tmp_path, monkeypatch):
    board = []

    class SummaryWriter:
        def __init__(self, directory, purge_step):
            board.append((directory, purge_step))

        def add_scalar(self, name, value, step):
            board.append((name, value, step))

        def close(self):
            board.append("closed")

    fake = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "tensorboardX", fake)
    writer = MetricsWriter(tmp_path, 3, [TensorBoard(tmp_path, 3)])
    writer.write(4, loss=1.5)
    writer.close()
    assert board == [(str(tmp_path / "tensorboard"), 4), ("loss", 1.5, 4), "closed"]


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Weights & Biases itself, writing to the disk; it reads its variables once."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb = pytest.importorskip("wandb")
    wandb.teardown()
    yield
    wandb.teardown()


def test_wandb_offline_continues_the_same_run(tmp_path, offline, capfd):
    for first, loss in ((0, 2.5), (1, 2.25)):
        sink = WeightsAndBiases(tmp_path, {"optimizer": {"learning_rate": 1e-3}})
        writer = MetricsWriter(tmp_path, first, [sink])
        writer.write(first + 1, loss=loss)
        writer.close()
    sys.modules["wandb"].teardown()  # waits for its process, which may write after `finish`
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    assert len({file.name for file in files}) == 1, "one id, so `wandb sync` makes one run of both"
    for file, number in zip(files, ("2.5", "2.25"), strict=True):
        content = file.read_bytes()
        for part in ("loss", number, "learning_rate", tmp_path.name):
            assert part.encode() in content, part
    assert "Traceback" not in capfd.readouterr().err


def test_wandb_without_a_key_is_one_line(tmp_path, offline, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"train\.wandb: .*WANDB_MODE=offline"):
        WeightsAndBiases(tmp_path, {})

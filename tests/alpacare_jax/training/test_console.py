"""Announced compilations, and the times that are remembered for the next run."""

import json

import jax
import pytest

from alpacare_jax.training import console


@pytest.fixture
def cache(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)


def compile_with(capsys, *settings, full: bool) -> str:
    """What is printed while a program is 'compiled', in full or from the cache."""

    def program(state, arrays):
        if full:
            jax.monitoring.record_event(console.MISS_EVENT)
        return state + len(arrays["tokens"])

    call = console.Compilations(*settings).announced(program, "the step")
    arrays = {"tokens": jax.numpy.zeros((2, 3))}
    assert [call(1, arrays), call(2, arrays)] == [3, 4]
    return capsys.readouterr().err


def test_a_full_compilation_is_the_estimate_of_the_next(cache, capsys):
    first = compile_with(capsys, "settings", full=True)
    assert first == "compiling the step (no estimate yet)\n", "once for a shape"
    path = cache / "compile_seconds.json"
    ((key, seconds),) = json.loads(path.read_text()).items()
    assert seconds >= 0
    path.write_text(json.dumps({key: 41.3}))
    again = compile_with(capsys, "settings", full=False)
    assert again == "compiling the step (about 41s the last time)\n"
    assert json.loads(path.read_text()) == {key: 41.3}, "what came from the cache is no estimate"
    other = compile_with(capsys, "other settings", full=True)
    assert other == "compiling the step (no estimate yet)\n"
    assert json.loads(path.read_text()).keys() > {key}


@pytest.mark.parametrize("content", ["", "[1]", '{"a":'])
def test_a_damaged_file_of_times_is_replaced(cache, capsys, content):
    (cache / "compile_seconds.json").write_text(content)
    assert "(no estimate yet)" in compile_with(capsys, full=True)
    assert len(json.loads((cache / "compile_seconds.json").read_text())) == 1


def test_without_a_cache_nothing_is_remembered(cache, capsys):
    jax.config.update("jax_compilation_cache_dir", None)
    call = console.Compilations().announced(lambda state, arrays: state, "the step")
    call(0, {"tokens": jax.numpy.zeros(1)})
    assert capsys.readouterr().err == "compiling the step (no estimate yet)\n"
    assert list(cache.iterdir()) == []

"""The text of a stream: whole characters, no part of a stop string, equal to the text at once."""

import numpy as np
import pytest

from alpacare_jax.data.tokenizers import Tokenizer
from alpacare_jax.inference.text_stream import TextStream, cut_at_stop, spelling
from tests.alpacare_jax.conftest import CORPUS, PLAIN

TEXTS = [text for text in (*PLAIN, *CORPUS[:3]) if text]
STOPS = ((), ("pain",), ("the", " heart"), ("患者", "e"), ("\n\n",), ("fever.",))


def streamed(tokenizer: Tokenizer, ids: list[int], size: int, **settings) -> list[str]:
    """The parts that a stream shows of ids that arrive `size` at a time."""
    stream = TextStream(tokenizer, **settings)
    groups = [ids[start : start + size] for start in range(0, len(ids), size)]
    return [*(stream.feed(group) for group in groups), stream.close()]


def random_ids(tokenizer: Tokenizer, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, tokenizer.vocab_size + 2, 60).tolist()


@pytest.mark.parametrize("size", [1, 3, 100])
def test_the_parts_make_the_whole(every_tokenizer, size):
    for tokenizer in every_tokenizer:
        answers = [tokenizer.encode(text) for text in TEXTS]
        answers += [random_ids(tokenizer, seed) for seed in range(20)]
        for ids in answers:
            whole = tokenizer.decode(ids, continuation=True)
            assert "".join(streamed(tokenizer, ids, size)) == whole
            assert "".join(streamed(tokenizer, ids, size, strip=True)) == whole.strip()


@pytest.mark.parametrize("stops", STOPS)
def test_the_stop_string_that_is_complete_first_ends_it(every_tokenizer, stops):
    stopped = 0
    for tokenizer in every_tokenizer:
        answers = [tokenizer.encode(text) for text in TEXTS]
        for ids in [*answers, *(random_ids(tokenizer, seed) for seed in range(20))]:
            for used in range(1, len(ids) + 1):
                whole = tokenizer.decode(ids[:used], continuation=True)
                text, ended = cut_at_stop(whole, stops)
                if ended:
                    break
            stream = TextStream(tokenizer, stops, strip=True)
            shown = "".join([*(stream.feed([token]) for token in ids), stream.close()])
            assert (shown, stream.used, stream.stopped) == (text.strip(), used, ended)
            stopped += ended
    assert bool(stopped) == bool(stops)


@pytest.mark.parametrize("stops", STOPS[1:])
def test_what_is_shown_is_never_taken_back(every_tokenizer, stops):
    for tokenizer in every_tokenizer:
        for ids in map(tokenizer.encode, TEXTS):
            whole = cut_at_stop(tokenizer.decode(ids, continuation=True), stops)[0]
            shown = ""
            for part in streamed(tokenizer, ids, 1, stops=stops):
                shown += part
                assert whole.startswith(shown) and "\ufffd" not in part


def test_a_character_is_shown_once_it_is_whole(every_tokenizer):
    """🩺 is four bytes, which no vocabulary here joins."""
    for tokenizer in every_tokenizer:
        parts = streamed(tokenizer, tokenizer.encode("a🩺🩺b", continuation=True), 1)
        assert "".join(parts) == "a🩺🩺b"
        assert len(parts) > 8 and all(set(part) <= set("a🩺b") for part in parts)


def test_every_token_has_its_bytes(every_tokenizer):
    for tokenizer in every_tokenizer:
        for text in TEXTS:
            ids = tokenizer.encode(text, continuation=True)
            assert b"".join(map(tokenizer.token_bytes, ids)).decode() == tokenizer.decode(
                ids, continuation=True
            )
        names = [spelling(tokenizer, token)[0] for token in range(tokenizer.vocab_size)]
        assert all(names) and spelling(tokenizer, tokenizer.eos_id)[0] == tokenizer.piece(
            tokenizer.eos_id
        )


def test_a_part_of_a_character_is_spelled_in_hexadecimals(sentencepiece_dir, every_tokenizer):
    for tokenizer in every_tokenizer:
        ids = tokenizer.encode("患", continuation=True)
        assert [spelling(tokenizer, token)[0] for token in ids][-3:] == [
            "bytes:\\xe6",
            "bytes:\\x82",
            "bytes:\\xa3",
        ]
        unknown = tokenizer.vocab_size + 5
        assert spelling(tokenizer, unknown) == (f"token_id:{unknown}", b"")

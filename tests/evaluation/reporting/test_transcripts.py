"""The packed texts are those of the workdirs, each once, and no more than the page may hold."""

import base64
import gzip
import json

import pytest

from evaluation.judgements import reading, verdicts, workdirs
from evaluation.reporting import transcripts
from evaluation.reporting.systems import System
from tests.support import judge_workdirs

SYSTEMS = {name: System(name.upper()) for name in judge_workdirs.SET["systems"]}


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    folder = judge_workdirs.write_set(tmp_path_factory.mktemp("set"))
    labels = judge_workdirs.write_labels(folder / "labels.jsonl")
    found, people = reading.read([folder], [labels])
    return found, people, workdirs.read([folder], found)


def pack(read, max_bytes=10**6, seed=0):
    return transcripts.pack(*read, systems=SYSTEMS, seed=seed, max_bytes=max_bytes)


def unpack(packed, name):
    return gzip.decompress(base64.b64decode(packed.packed[name]))


def test_every_text_verdict_and_reply_comes_back(read):
    found, people, texts = read
    packed = pack(read)
    index = packed.index
    assert (packed.shown, packed.items) == (16, 16)
    assert index["systems"] == ["OURS-7B", "OURS-13B", "THEIRS-7B"]
    assert index["judges"] == ["lenient/gpt", "strict", "human"]
    codes = unpack(packed, "verdicts")
    assert len(codes) == sum(index["sizes"][benchmark] for _, benchmark, _, _ in index["cells"])
    starts, end = {}, 0
    for judge, benchmark, reference, system in index["cells"]:
        starts[judge, benchmark, reference, system] = end
        end += index["sizes"][benchmark]
    rows = json.loads(unpack(packed, "items"))
    assert [row[2] for row in rows] == [*found.ids["heart"], *found.ids["lung"]]
    cells = found.tables | people.tables
    for benchmark, place, name, instruction, given, topic, difficulty, block, row in rows:
        item = texts.items[index["benchmarks"][benchmark], name]
        fields = (item.instruction, item.input, item.topic, item.difficulty)
        assert fields == (instruction, given, topic, difficulty)
        content = json.loads(unpack(packed, f"block-{block}"))
        shown = content["items"][row]
        for number, generator in enumerate(index["generators"]):
            output = texts.outputs[item.benchmark, generator][name]
            assert shown["outputs"][str(number)] == [output.output, "stop"]
        for number, cell in enumerate(index["cells"]):
            if cell[1] != benchmark:
                continue
            names = verdicts.Matchup(
                index["judges"][cell[0]],
                item.benchmark,
                index["references"][cell[2]],
                list(SYSTEMS)[cell[3]],
            )
            table = cells[names][place]
            assert list(divmod(codes[starts[tuple(cell)] + place], 5)) == [v + 1 for v in table]
            positions = shown["replies"].get(str(number), [-1, -1])
            for code, position in zip(table, positions, strict=True):
                verdict = list(verdicts.Verdict)[code] if code >= 0 else None
                judge = names.judge
                expected = f"{judge} says {verdict}" if verdict else None
                assert (content["replies"][position] if position >= 0 else None) == expected


def test_a_small_page_holds_a_sample_that_a_seed_draws(read, monkeypatch):
    monkeypatch.setattr(transcripts, "BLOCK_ITEMS", 2)
    small = pack(read, max_bytes=2500)
    assert 2 <= small.shown < small.items == 16
    blocks = [text for name, text in small.packed.items() if name.startswith("block")]
    assert sum(map(len, blocks)) <= 2500
    assert pack(read, max_bytes=2500) == small
    assert pack(read, max_bytes=2500, seed=1).packed["items"] != small.packed["items"]
    assert pack(read, max_bytes=1).shown == 2


def test_half_a_surrogate_pair_in_a_reply(tmp_path):
    folder = judge_workdirs.write(tmp_path, lambda r: "tie", items={"b": ["1"]})
    path = folder / "judgements.jsonl"
    path.write_text(path.read_text().replace("j says tie", r"tie \ud83d"))
    found, _ = reading.read([folder])
    texts = workdirs.read([folder], found)
    packed = transcripts.pack(
        found, None, texts, systems={"ours": System("ours")}, seed=0, max_bytes=10**6
    )
    assert json.loads(unpack(packed, "block-0"))["replies"] == ["tie ?"]


def test_the_same_texts_give_the_same_bytes(read):
    assert pack(read) == pack(read)

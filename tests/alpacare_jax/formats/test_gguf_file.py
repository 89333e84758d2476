"""GGUF files, written as llama.cpp writes them, against what went into them and transformers."""

import dataclasses
import inspect
import io
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers

from alpacare_jax import convert
from alpacare_jax.checkpoints import model_folder
from alpacare_jax.formats import byte_level, gguf_file, hf_weights
from alpacare_jax.model.config import LlamaConfig
from common import extras
from tests.alpacare_jax.conftest import CORPUS, LEADING_SPACE, SPECIAL_TEXT
from tests.alpacare_jax.conftest import PLAIN as PLAIN_TEXTS
from tests.support.hf_folders import (
    PLAIN,
    TIED,
    assert_same_bits,
    fails_and_leaves_nothing,
    hf_tensors,
    read_tensors,
    to_hf,
)

GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


@pytest.fixture(scope="session")
def gguf():
    return pytest.importorskip("gguf", reason="it writes the files that are read here")


def permute(weights: np.ndarray, heads: int) -> np.ndarray:
    """`LlamaModel.permute` of llama.cpp's convert_hf_to_gguf.py."""
    return (
        weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
        .swapaxes(1, 2)
        .reshape(weights.shape)
    )


def write_gguf(gguf, path: Path, config: LlamaConfig, kind: str, **changes) -> dict:
    """Writes a GGUF file as llama.cpp does; returns the weights it holds, in HF's layout."""
    architecture = changes.pop("architecture", "llama")
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    if "tokenizer" in changes:
        changes.pop("tokenizer")(gguf, writer)
    else:
        write_gguf_tokenizer(
            gguf, writer, config.vocab_size, changes.pop("pre", "smollm"), changes.pop("unknown", 0)
        )
    if scaling := changes.pop("rope_scaling", None):
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling))
    quantised = gguf.GGMLQuantizationType[kind]
    expected = {}
    for key, tensor in (hf_tensors(config) | changes.pop("tensors", {})).items():
        stem, _, last = key.removeprefix("model.layers.").rpartition(".")
        layer, _, module = stem.partition(".")
        name = f"blk.{layer}.{GGUF_NAMES[module]}" if layer.isdigit() else GGUF_NAMES[stem]
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
        count = heads.get(name.split(".")[-1])
        stored = permute(tensor, count) if count else tensor
        # llama.cpp keeps vectors in float32. Blocks lie within rows, so that quantising the
        # rows in another order gives the same numbers.
        if tensor.ndim == 1:
            expected[key] = tensor
            writer.add_tensor(f"{name}.{last}", stored)
        else:
            blocks = gguf.quantize(tensor, quantised)
            expected[key] = gguf.dequantize(blocks, quantised)
            writer.add_tensor(
                f"{name}.{last}", gguf.quantize(stored, quantised), raw_dtype=quantised
            )
    for name, tensor in changes.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def write_gguf_tokenizer(gguf, writer, vocab_size: int, pre: str, unknown: int) -> None:
    from tokenizers import pre_tokenizers

    tokens = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = ["Ġ f", "e v", "Ġf ev", "e r", "Ġfev er", "Ġ p", "1 5"]
    tokens += [merge.replace(" ", "") for merge in merges]
    tokens += [f"<extra_{i}>" for i in range(vocab_size - len(tokens))]
    kinds = gguf.TokenType
    types = [kinds.NORMAL] * len(tokens)
    types[:3] = [kinds.CONTROL] * 3
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_unk_token_id(unknown)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{{ messages }}")


@pytest.mark.parametrize(
    ("config", "kind"), [(PLAIN, "F32"), (PLAIN, "F16"), (PLAIN, "Q8_0"), (TIED, "Q4_1")]
)
def test_gguf_gives_the_weights_it_holds(config, kind, gguf, tmp_path):
    expected = write_gguf(gguf, tmp_path / "tiny.gguf", config, kind)
    convert.from_gguf(tmp_path / "tiny.gguf", tmp_path / "ours")
    assert model_folder.read_config(tmp_path / "ours") == config
    result = to_hf(tmp_path / "ours", tmp_path / "hf")
    assert_same_bits(read_tensors(result), expected)
    original = hf_tensors(config)
    off = max(np.abs(expected[key] - original[key]).max() for key in original)
    assert (off == 0) == (kind == "F32")
    assert off < {"F32": 1e-9, "F16": 1e-3, "Q8_0": 0.01, "Q4_1": 0.06}[kind]


@pytest.mark.parametrize(("config", "kind"), [(PLAIN, "Q8_0"), (TIED, "Q4_1")])
def test_gguf_is_what_transformers_reads(config, kind, gguf, tmp_path, torch, transformers):
    write_gguf(gguf, tmp_path / "tiny.gguf", config, kind)
    convert.from_gguf(tmp_path / "tiny.gguf", tmp_path / "ours")
    result = to_hf(tmp_path / "ours", tmp_path / "hf")
    ours = transformers.AutoModelForCausalLM.from_pretrained(result)
    # from_pretrained(gguf_file=...) ends in the same function, but asks for accelerate first.
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    read = load_gguf_checkpoint(
        str(tmp_path / "tiny.gguf"), return_tensors=True, model_to_load=ours
    )
    settings = LlamaConfig.from_hf(read["config"])
    # Its metadata is float32: 9.999999747378752e-06 is 1e-5. GGUF has no key for what is tied.
    assert settings.rms_norm_eps == pytest.approx(config.rms_norm_eps)
    assert dataclasses.replace(settings, rms_norm_eps=config.rms_norm_eps) == config
    state = ours.state_dict()
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    assert state.keys() == read["tensors"].keys()
    for key, tensor in state.items():
        assert torch.equal(tensor, read["tensors"][key]), key


def test_gguf_tokenizer(gguf, tmp_path):
    write_gguf(gguf, tmp_path / "tiny.gguf", PLAIN, "F32")
    convert.from_gguf(tmp_path / "tiny.gguf", tmp_path / "ours")
    tokenizer = model_folder.load_tokenizer(tmp_path / "ours")
    # Padding is never EOS, though the file says so.
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 0)
    assert not tokenizer.adds_bos
    ids = tokenizer.encode("a fever 15")
    assert [tokenizer.piece(i) for i in ids] == ["a", "Ġfever", "Ġ", "1", "5"]
    assert tokenizer.decode(ids) == "a fever 15"
    settings = json.loads((tmp_path / "ours" / "tokenizer_config.json").read_text())
    assert settings["chat_template"] == "{{ messages }}"
    generation = json.loads((tmp_path / "ours" / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


# LLaMA's tokenizers

SYMBOLS = ["<|im_start|>", "two▁words", "β-blocker"]  # of the user; matched whole
CONTROLS = ["<|im_end|>", "[PAD]"]


@pytest.fixture(scope="session")
def llama_model(tmp_path_factory) -> bytes:
    """LLaMA's SentencePiece model in small, with tokens that a fine-tune might add."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        model_type="bpe",
        vocab_size=420,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        user_defined_symbols=SYMBOLS,
        control_symbols=CONTROLS,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def sentencepiece_writer(content: bytes, **changes):
    """Writes a SentencePiece model as `_set_vocab_sentencepiece` of convert_hf_to_gguf.py does."""

    def write(gguf, writer):
        model = sentencepiece.SentencePieceProcessor(model_proto=content)
        tokens, scores, types = [], [], []
        for i in range(model.vocab_size()):
            piece, kind = model.id_to_piece(i), gguf.TokenType.NORMAL
            if model.is_unknown(i):
                kind = gguf.TokenType.UNKNOWN
            elif model.is_control(i):
                kind = gguf.TokenType.CONTROL
            elif model.is_unused(i):
                kind = gguf.TokenType.UNUSED
            elif model.is_byte(i):
                kind = gguf.TokenType.BYTE
            elif piece in SYMBOLS:
                kind, piece = gguf.TokenType.USER_DEFINED, piece.replace("▁", " ")
            tokens.append(piece.encode())
            scores.append(model.get_score(i))
            types.append(kind)
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(changes.get("tokens", tokens))
        if "scores" not in changes:
            writer.add_token_scores(scores)
        writer.add_token_types(types)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(changes.get("eos", 2))
        writer.add_unk_token_id(0)

    return write


TEXTS = [
    *PLAIN_TEXTS,
    *LEADING_SPACE,
    *SPECIAL_TEXT,
    *CORPUS[:3],
    "a<|im_start|> user two words, two  words and β-blocker",
    "<|im_end|>[PAD]<s></s><unk>",
    "".join(map(chr, [*range(1, 0x180), 0x2581, 0x3000, 0xFFFD, 0x1F9EC, 0x10FFFF])),
]


def test_a_llama_gguf_has_the_ids_of_its_sentencepiece_model(llama_model, gguf, tmp_path):
    config = dataclasses.replace(PLAIN, vocab_size=420)
    expected = write_gguf(
        gguf, tmp_path / "llama.gguf", config, "F32", tokenizer=sentencepiece_writer(llama_model)
    )
    convert.from_gguf(tmp_path / "llama.gguf", tmp_path / "ours")
    tokenizer = model_folder.load_tokenizer(tmp_path / "ours")
    original = sentencepiece.SentencePieceProcessor(model_proto=llama_model)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 0)
    assert tokenizer.adds_bos
    draw = random.Random(0)
    letters = sorted(set("".join(TEXTS)))
    drawn = ["".join(draw.choices(letters, k=40)) for _ in range(200)]
    for text in TEXTS + drawn:
        ids = original.encode(text)
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.decode(ids) == original.decode(ids), text
    assert any(original.is_byte(i) for i in original.encode(PLAIN_TEXTS[5])), "byte fallback"
    for text in ("<|im_end|>", "</s>", "[PAD]"):  # control tokens are never read from text
        assert not tokenizer.control_ids.intersection(tokenizer.encode(text))
    for symbol in SYMBOLS:
        assert original.piece_to_id(symbol) in tokenizer.encode(f"a {symbol.replace('▁', ' ')}")
    assert_same_bits(read_tensors(to_hf(tmp_path / "ours", tmp_path / "hf")), expected)


def test_transformers_reads_the_sentencepiece_model(llama_model, gguf, tmp_path, transformers):
    config = dataclasses.replace(PLAIN, vocab_size=420)
    write_gguf(
        gguf, tmp_path / "llama.gguf", config, "F32", tokenizer=sentencepiece_writer(llama_model)
    )
    convert.from_gguf(tmp_path / "llama.gguf", tmp_path / "ours")
    original = sentencepiece.SentencePieceProcessor(model_proto=llama_model)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    for text in PLAIN_TEXTS[1:]:
        assert theirs(text)["input_ids"] == [1, *original.encode(text)], text
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (1, 2, 0)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"scores": None}, ["lacks the metadata tokenizer.ggml.scores"]),
        ({"tokens": [b"a"] * 420}, ["SentencePiece vocabulary", "damaged", "from_hf"]),
    ],
)
def test_a_damaged_sentencepiece_vocabulary_is_named(changes, named, llama_model, gguf, tmp_path):
    config = dataclasses.replace(PLAIN, vocab_size=420)
    writer = sentencepiece_writer(llama_model, **changes)
    write_gguf(gguf, tmp_path / "llama.gguf", config, "F32", tokenizer=writer)
    with fails_and_leaves_nothing(tmp_path, ValueError, *named):
        convert.from_gguf(tmp_path / "llama.gguf", tmp_path / "ours")


def llama3_tokenizer() -> tokenizers.Tokenizer:
    """LLaMA 3's tokenizer in small: its pattern, and words that no merges lead to."""
    pattern = tokenizers.Regex(byte_level.LLAMA3_PATTERN)
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=True))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(pattern, "isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    spec = json.loads(backend.to_str())
    spec["model"]["vocab"] |= {"Ġmetformin": 400}
    backend = tokenizers.Tokenizer.from_str(json.dumps(spec))
    backend.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>"])
    return backend


def test_a_llama3_gguf_has_the_ids_of_its_tokenizer_json(gguf, tmp_path):
    original = llama3_tokenizer()
    spec = json.loads(original.to_str())
    vocab = original.get_vocab(with_added_tokens=True)
    config = dataclasses.replace(PLAIN, vocab_size=len(vocab))

    def write_tokenizer(gguf, writer):
        kinds = gguf.TokenType
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("llama-bpe")
        writer.add_token_list(sorted(vocab, key=vocab.get))
        writer.add_token_types([kinds.NORMAL] * 401 + [kinds.CONTROL] * 2)
        writer.add_token_merges([" ".join(pair) for pair in spec["model"]["merges"]])
        writer.add_bos_token_id(401)
        writer.add_eos_token_id(402)

    write_gguf(gguf, tmp_path / "llama3.gguf", config, "F32", tokenizer=write_tokenizer)
    convert.from_gguf(tmp_path / "llama3.gguf", tmp_path / "ours")
    tokenizer = model_folder.load_tokenizer(tmp_path / "ours")
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.adds_bos) == (401, 402, True)
    original.encode_special_tokens = True
    for text in [
        *PLAIN_TEXTS,
        *LEADING_SPACE,
        *SPECIAL_TEXT,
        *CORPUS,
        "of metformin, 12345 it's IT'S",
    ]:
        assert tokenizer.encode(text) == original.encode(text, add_special_tokens=False).ids, text
    assert 400 in tokenizer.encode("of metformin")


def test_the_pattern_is_that_of_llama_3():
    """transformers' converter of tiktoken files has it as its default."""
    converters = pytest.importorskip("transformers.convert_slow_tokenizer")
    pattern = inspect.signature(converters.TikTokenConverter).parameters["pattern"].default
    assert pattern == byte_level.LLAMA3_PATTERN


@pytest.mark.parametrize(("unknown", "pad"), [(0, 0), (2, 1)])
def test_padding_of_a_gguf_is_never_its_eos(unknown, pad, gguf, tmp_path):
    write_gguf(gguf, tmp_path / "tiny.gguf", PLAIN, "F32", unknown=unknown)
    files = gguf_file.open_gguf(tmp_path / "tiny.gguf").files()
    assert files["config.json"]["pad_token_id"] == pad
    assert files["generation_config.json"]["pad_token_id"] == pad
    assert files["tokenizer_config.json"]["pad_token"] == ["<unk>", "<s>"][pad]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architecture": "qwen2"}, ["'qwen2'", "not 'llama'"]),
        ({"rope_scaling": "linear"}, ["RoPE scaling", "from_hf"]),
        # So llama.cpp writes Llama 3.1's scaling: no setting, but a table of divisors.
        ({"rope_freqs.weight": np.full(8, 8, "f")}, ["RoPE scaling", "from_hf"]),
        (
            {"pre": "default"},
            ["'gpt2' with pre-tokenizer 'default'", "are 'llama'"],
        ),
        ({"blk.0.ffn_gate_inp.weight": np.ones((4, 64), "f")}, ["blk.0.ffn_gate_inp.weight"]),
        (
            {"blk.0.attn_q.bias": np.ones(64, "f")},
            ["unexpected key", "0.self_attn.q_proj.bias"],
        ),
        (
            {"tensors": {"model.layers.2.mlp.up_proj.weight": np.ones((64, 96), "f")}},
            ["model.layers.2.mlp.up_proj.weight", "(64, 96)"],
        ),
    ],
)
def test_gguf_that_is_not_read_is_named(changes, named, gguf, tmp_path):
    write_gguf(gguf, tmp_path / "tiny.gguf", PLAIN, "F32", **changes)
    with fails_and_leaves_nothing(tmp_path, ValueError, *named):
        convert.from_gguf(tmp_path / "tiny.gguf", tmp_path / "ours")


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"split.count": 3}, ["one of 3 parts", "llama-gguf-split --merge"]),
        ({"llama.expert_count": 8}, ["a mixture of 8 experts"]),
        ({"llama.attention.key_length": 64}, ["rotates 16 of 64 dimensions"]),
        ({"llama.block_count": "3"}, ["llama.block_count='3', not one number"]),
        ({"llama.embedding_length": 0}, ["llama.embedding_length=0"]),
        ({"tokenizer.ggml.bos_token_id": 384}, ["384 tokens, but 384 is the id"]),
    ],
)
def test_metadata_that_is_not_read_is_named(metadata, named, gguf, tmp_path, monkeypatch):
    path = tmp_path / "tiny.gguf"
    write_gguf(gguf, path, PLAIN, "F32")
    field = gguf_file._field  # a file holds each name once, so that this stands for another value
    monkeypatch.setattr(
        gguf_file, "_field", lambda reader, name: metadata.get(name, field(reader, name))
    )
    with fails_and_leaves_nothing(tmp_path, ValueError, *named):
        convert.from_gguf(path, tmp_path / "ours")


def test_a_gguf_that_is_a_git_lfs_pointer(gguf, tmp_path):
    path = tmp_path / "tiny.gguf"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with fails_and_leaves_nothing(tmp_path, ValueError, f"{path} is a git-lfs pointer"):
        convert.from_gguf(path, tmp_path / "ours")


def test_damaged_metadata_ends_in_one_line(gguf, tmp_path):
    """A bit that flips in a name or a number: read as another file, or refused."""
    path = tmp_path / "tiny.gguf"
    write_gguf(gguf, path, PLAIN, "F32")
    content, refused = path.read_bytes(), 0
    for at in range(0, 2000, 37):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        try:
            model = gguf_file.open_gguf(path)
            hf_weights.assign(model.tensors(), LlamaConfig.from_hf(model.config))
            model.files()
        except (ValueError, OSError) as error:
            refused += "\n" not in str(error)
    assert refused > 20


@pytest.mark.parametrize("kept", [0, 3, 100, 0.3, 0.9, -1])
def test_truncated_gguf_is_one_clear_error(kept, gguf, tmp_path):
    path = tmp_path / "tiny.gguf"
    write_gguf(gguf, path, PLAIN, "Q8_0")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with fails_and_leaves_nothing(tmp_path, ValueError, str(path), "truncated"):
        convert.from_gguf(path, tmp_path / "ours")


def test_gguf_without_its_package_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        convert.from_gguf(tmp_path / "tiny.gguf", tmp_path / "ours")
    assert "pip install '.[convert]'" in extras.advice(caught.value, "all")
    assert not (tmp_path / "ours").exists()

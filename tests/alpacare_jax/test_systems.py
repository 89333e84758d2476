"""Every system of the paper from its published form: loaded, compared with transformers, prompted,
and written back."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file

from alpacare_jax import convert, generate
from alpacare_jax.checkpoints import adapters, checkpoint, export, model_folder
from alpacare_jax.data.encoding import encode_prompt
from alpacare_jax.formats import meta_folder
from alpacare_jax.formats.byte_level import LLAMA3_PATTERN
from alpacare_jax.inference.sampling import Sampling
from alpacare_jax.model.config import LlamaConfig
from alpacare_jax.model.llama import Llama
from alpacare_jax.model.rope import RopeScaling
from common.records import Example
from tests.alpacare_jax.conftest import CORPUS, LEADING_SPACE, PLAIN
from tests.support import published_folders
from tests.support.hf_folders import assert_same_bits, read_tensors, to_hf
from tests.support.published_folders import LLAMA, LLAMA3, PUBLISHED

pytestmark = pytest.mark.usefixtures("quickly_compiled")
TEXT = "What causes fever in a child of 5?"


@pytest.fixture(params=PUBLISHED)
def system(request) -> str:
    return request.param


@pytest.fixture
def source(system, torch, sentencepiece_dir, tmp_path) -> Path:
    folder = tmp_path / "published"
    folder.mkdir()
    PUBLISHED[system](torch, folder, sentencepiece_dir / "tokenizer.model")
    return folder


def our_logits(model: Path, ids: list[int]) -> np.ndarray:
    config = model_folder.read_config(model)
    llama = Llama(checkpoint.load_params(model, config, dtype=jnp.dtype("float32")), config)
    positions = np.arange(len(ids))[None]
    hidden = llama.hidden(np.array([ids]), positions, np.ones_like(positions))
    return np.asarray(llama.logits(hidden))[0]


def their_logits(torch, transformers, tensors, config: LlamaConfig, ids: list[int]) -> np.ndarray:
    """transformers' LLaMA with these weights, which do not come from our files."""
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config.to_hf())).eval()
    state = {k: torch.from_numpy(t.astype(np.float32)) for k, t in tensors.items()}
    loading = model.load_state_dict(state, strict=False)
    assert set(loading.missing_keys) <= {"lm_head.weight"} and not loading.unexpected_keys
    model.tie_weights()
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def answered(model: Path, output: Path, template: str, adapter: Path | None = None) -> list[dict]:
    """Two records answered by the command's `run`, in the native manner of a template."""
    records = output.with_name("records.jsonl")
    lines = [{"instruction": TEXT, "input": ""}, {"instruction": "Explain.", "input": "MRI"}]
    records.write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = generate.mode_settings("native", template, epath.Path(model))
    limits = {"max_length": settings.pop("max_length", 320), "max_new_tokens": 4}
    settings.pop("max_new_tokens", None)
    generate.run(
        generate.GenerationConfig(
            checkpoint=epath.Path(model),
            adapter=epath.Path(adapter) if adapter else None,
            step="best",
            input=epath.Path(records),
            output=epath.Path(output),
            template=template,
            **limits,
            batch_size=2,
            devices=jax.devices()[:1],
            tensor=1,
            sampling=Sampling(**settings),
            stop=[],
            dtype="float32",
            generator="",
        )
    )
    return json.loads(output.read_text())


def test_loads_and_writes_back_with_the_logits_of_transformers(
    system, source, torch, transformers, sentencepiece_dir, tmp_path, capsys
):
    (tmp_path / "again").mkdir()
    model_file = sentencepiece_dir / "tokenizer.model"
    tensors = PUBLISHED[system](torch, tmp_path / "again", model_file)
    convert.from_hf(source, tmp_path / "ours")
    said = capsys.readouterr().err
    first_form = system in ("alpaca", "medalpaca")
    assert ("BOS 0 and EOS 1, as the first conversions" in said) == first_form
    assert_same_bits(read_tensors(to_hf(tmp_path / "ours", tmp_path / "back")), tensors)

    tokenizer = model_folder.load_tokenizer(tmp_path / "ours")
    assert tokenizer.eos_id == 2
    assert tokenizer.bos_id == (2 if system in ("alpaca", "chatdoctor") else 1)
    ids = [tokenizer.bos_id, *tokenizer.encode(TEXT)]
    config = model_folder.read_config(tmp_path / "ours")
    assert config.max_position_embeddings == (4096 if system == "llama-2" else 2048)
    expected = their_logits(torch, transformers, tensors, config, ids)
    assert np.abs(our_logits(tmp_path / "ours", ids) - expected).max() <= 1e-4


TEMPLATE = {"chatdoctor": "chatdoctor", "medalpaca": "medalpaca", "pmc-llama-7b": "plain"}


@pytest.mark.slow
def test_generates_as_its_authors_did(system, source, tmp_path):
    convert.from_hf(source, tmp_path / "ours")
    rows = answered(tmp_path / "ours", tmp_path / "out.json", TEMPLATE.get(system, "alpaca"))
    assert [row["finish_reason"] in ("stop", "length") for row in rows] == [True, True]
    assert all(row["num_tokens"] for row in rows)


def test_baize_healthcare(torch, transformers, sentencepiece_dir, tmp_path):
    """An adapter on LLaMA: compared with peft, prompted, merged, and written back."""
    peft = pytest.importorskip("peft", reason="peft is what adapters are compared with")
    (base := tmp_path / "base").mkdir()
    published_folders.llama_hf(torch, base, sentencepiece_dir / "tokenizer.model")
    convert.from_hf(base, tmp_path / "ours")
    (adapter := tmp_path / "adapter").mkdir()
    tensors = published_folders.baize_adapter(torch, adapter)
    stored = adapters.open_adapter(adapter)
    assert (stored.lora.rank, stored.lora.scaling, stored.lora.dropout) == (8, 2.0, 0.05)

    config = model_folder.read_config(tmp_path / "ours")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(theirs, adapter).eval()
    weights = checkpoint.load_params(tmp_path / "ours", config, dtype=jnp.dtype("float32"))
    factors = stored.load(config, jnp.float32)
    ours = Llama(weights, config, adapter=factors, scaling=stored.lora.scaling)
    ids = [1, *model_folder.load_tokenizer(tmp_path / "ours").encode(TEXT)]
    places = np.arange(len(ids))[None]
    got = ours.logits(ours.hidden(np.array([ids]), places, np.ones_like(places)))
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits.numpy()
    assert np.abs(np.asarray(got) - expected).max() <= 1e-4
    assert np.abs(our_logits(tmp_path / "ours", ids) - expected[0]).max() > 0.1

    (again := tmp_path / "again").mkdir()
    adapters.write_peft(again, stored.lora, stored.lora.adapter(config), factors, "")
    assert_same_bits(load_file(again / adapters.PEFT_WEIGHTS), tensors)
    with pytest.raises(ValueError, match="is in peft's form already"):
        export.to_peft(epath.Path(adapter), tmp_path / "never", "best", "")
    export.merge(epath.Path(tmp_path / "ours"), epath.Path(adapter), tmp_path / "merged", "best")
    merged = our_logits(tmp_path / "merged", ids)  # in float16, as the base
    assert np.abs(merged - expected[0]).max() <= 0.05


@pytest.mark.parametrize("shards, kv_heads, dtype", [(1, 4, "float16"), (2, 2, "bfloat16")])
def test_llama_from_metas_files(
    shards, kv_heads, dtype, torch, transformers, sentencepiece_dir, tmp_path, capsys
):
    config = dataclasses.replace(LLAMA, num_key_value_heads=kv_heads)
    tensors = published_folders.random_tensors(config, dtype)
    (folder := tmp_path / "llama" / "7B").mkdir(parents=True)
    published_folders.write_meta(torch, folder, tensors, config, shards)
    shutil.copy(sentencepiece_dir / "tokenizer.model", folder.parent)
    convert.from_meta(folder, tmp_path / "ours")
    assert "no published LLaMA has these sizes: 2,048 positions" in capsys.readouterr().err
    assert_same_bits(read_tensors(to_hf(tmp_path / "ours", tmp_path / "back")), tensors)
    tokenizer = model_folder.load_tokenizer(tmp_path / "ours")
    ids = [tokenizer.bos_id, *tokenizer.encode(TEXT)]
    expected = their_logits(torch, transformers, tensors, config, ids)
    assert np.abs(our_logits(tmp_path / "ours", ids) - expected).max() <= 1e-4
    reopened = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    assert reopened(TEXT)["input_ids"] == ids


LLAMA32 = dataclasses.replace(
    LLAMA3,
    tie_word_embeddings=True,
    max_position_embeddings=131_072,
    rope_scaling=RopeScaling("llama3", factor=32.0),
)


@pytest.mark.parametrize("config", [LLAMA3, LLAMA32], ids=["8b", "3.2-1b"])
def test_llama_3(config, byte_level_dir, torch, transformers, tmp_path):
    (folder := tmp_path / "hf").mkdir()
    config, tensors = published_folders.llama3_hf(folder, byte_level_dir, config)
    bos, (eos,) = config.bos_token_id, config.eos_token_ids
    convert.from_hf(folder, tmp_path / "ours")
    assert_same_bits(read_tensors(to_hf(tmp_path / "ours", tmp_path / "back")), tensors)
    ids = [bos, *model_folder.load_tokenizer(folder).encode(TEXT)]
    expected = their_logits(torch, transformers, tensors, config, ids)
    assert np.abs(our_logits(tmp_path / "ours", ids) - expected).max() <= 1e-4

    native = generate.mode_settings("native", "llama3", epath.Path(tmp_path / "ours"))
    expected = {"temperature": 0.6, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.0}
    assert native == expected

    # Trained with LLaMA 3's template, a base model's release stops where its answers end.
    trained(tmp_path / "ours", "llama3")
    release = to_hf(tmp_path / "ours", tmp_path / "release")
    settings = json.loads((release / "generation_config.json").read_text())
    eot = model_folder.load_tokenizer(release).control_tokens["<|eot_id|>"]
    assert settings["eos_token_id"] == [eos, eot]
    theirs = transformers.AutoTokenizer.from_pretrained(release)
    message = [{"role": "user", "content": TEXT}]
    text = theirs.apply_chat_template(message, tokenize=False)
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    user, assistant = header.format("user"), header.format("assistant")
    assert text == f"<|begin_of_text|>{user}{TEXT}<|eot_id|>{assistant}"


META3 = dataclasses.replace(
    LLAMA3,
    vocab_size=256 + 100 + 256,
    bos_token_id=256 + 100,
    eos_token_ids=(256 + 101,),
)
LONG = {"max_position_embeddings": 131_072}
META_LLAMA3 = {
    "LLaMA 3: 8,192 positions": META3,
    "LLaMA 3.1: 131,072 positions, RoPE scaled by 8": dataclasses.replace(
        META3, rope_scaling=RopeScaling("llama3", factor=8.0), **LONG
    ),
    "LLaMA 3.2: 131,072 positions, RoPE scaled by 32, tied embeddings": dataclasses.replace(
        META3, rope_scaling=RopeScaling("llama3", 32.0), tie_word_embeddings=True, **LONG
    ),
}


@pytest.mark.parametrize("name", META_LLAMA3)
def test_llama_3_from_metas_files(name, torch, transformers, tmp_path, capsys, monkeypatch):
    tiktoken = pytest.importorskip("tiktoken", reason="reads LLaMA 3's tokenizer.model")
    from tiktoken.load import load_tiktoken_bpe
    from transformers.convert_slow_tokenizer import TikTokenConverter

    config = META_LLAMA3[name]
    if "3.1" in name:  # which is known by its width
        monkeypatch.setattr(meta_folder, "MAX_SMALL_WIDTH", config.hidden_size - 1)
    (folder := tmp_path / "original").mkdir()
    tensors = published_folders.llama3_meta(torch, folder, config)
    convert.from_meta(folder, tmp_path / "ours")
    assert capsys.readouterr().err == f"read as {name}\n"
    assert model_folder.read_config(tmp_path / "ours") == config
    release = to_hf(tmp_path / "ours", tmp_path / "release")
    assert_same_bits(read_tensors(release), tensors)

    tokenizer = model_folder.load_tokenizer(release)
    ranks = load_tiktoken_bpe(str(folder / "tokenizer.model"))
    theirs = tiktoken.Encoding(
        "tiny", pat_str=LLAMA3_PATTERN, mergeable_ranks=ranks, special_tokens={}
    )
    converted = TikTokenConverter(str(folder / "tokenizer.model")).converted()
    reopened = transformers.AutoTokenizer.from_pretrained(release)
    for text in [*PLAIN, *LEADING_SPACE, *CORPUS]:
        ids = tokenizer.encode(text)
        assert ids == theirs.encode(text) == converted.encode(text).ids
        assert [config.bos_token_id, *ids] == reopened(text)["input_ids"]
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|eot_id|>"]
    first = config.bos_token_id
    assert reopened.convert_tokens_to_ids(names) == [first, first + 1, first + 6, first + 9]
    padding = reopened.convert_ids_to_tokens(first + 4)
    assert ("reserved" in padding) == (config.rope_scaling is None)

    ids = [first, *tokenizer.encode(TEXT)]
    expected = their_logits(torch, transformers, tensors, config, ids)
    assert np.abs(our_logits(tmp_path / "ours", ids) - expected).max() <= 1e-4


def of_meta(torch, folder: Path, forms):
    tensors = published_folders.random_tensors(LLAMA, "float16")
    published_folders.write_meta(torch, folder, tensors, LLAMA, 2)
    shutil.copy(forms["model"] / "tokenizer.model", folder)
    return "plain", convert.from_meta


def of_meta_3(torch, folder: Path, forms):
    published_folders.llama3_meta(torch, folder, META3)
    return "llama3", convert.from_meta


def of_hub_3(torch, folder: Path, forms):
    published_folders.llama3_hf(folder, forms["bytes"], LLAMA32)
    return "llama3", convert.from_hf


def of_baize(torch, folder: Path, forms):
    published_folders.llama_hf(torch, folder, forms["model"] / "tokenizer.model")
    (adapter := folder.parent / "adapter").mkdir()
    published_folders.baize_adapter(torch, adapter)
    return "baize", convert.from_hf


@pytest.mark.slow
@pytest.mark.parametrize("form", [of_meta, of_meta_3, of_hub_3, of_baize])
def test_other_forms_generate(form, torch, sentencepiece_dir, byte_level_dir, tmp_path):
    (folder := tmp_path / "published").mkdir()
    template, converted = form(torch, folder, {"model": sentencepiece_dir, "bytes": byte_level_dir})
    converted(folder, tmp_path / "ours")
    adapter = tmp_path / "adapter" if (tmp_path / "adapter").exists() else None
    rows = answered(tmp_path / "ours", tmp_path / "out.json", template, adapter)
    assert [row["num_tokens"] > 0 for row in rows] == [True, True]
    assert {row["generator"] for row in rows} == {"adapter" if adapter else "ours"}


def trained(model: Path, template: str) -> None:
    """Marks a model directory as trained with a template."""
    config = {"data": {"template": template, "max_length": 256}, "train": {}}
    published_folders.write_json(model / "run.json", {"config": config})


@pytest.mark.parametrize("template", ["chatdoctor", "medalpaca", "alpaca"])
def test_the_template_travels_with_the_model(
    template, torch, transformers, sentencepiece_dir, tmp_path
):
    (folder := tmp_path / "hf").mkdir()
    published_folders.llama_hf(torch, folder, sentencepiece_dir / "tokenizer.model")
    convert.from_hf(folder, tmp_path / "ours")
    assert model_folder.trained_template(tmp_path / "ours") == ""
    assert not (to_hf(tmp_path / "ours", tmp_path / "unknown") / "chat_template.jinja").exists()
    trained(tmp_path / "ours", template)
    assert model_folder.trained_template(tmp_path / "ours") == template
    release = to_hf(tmp_path / "ours", tmp_path / "release")
    convert.from_hf(release, tmp_path / "back")
    assert model_folder.trained_template(tmp_path / "back") == template

    named = generate.prompts.TEMPLATES[template]
    theirs = transformers.AutoTokenizer.from_pretrained(release)
    message = [{"role": "user", "content": TEXT}]
    bos = "<s> " if named.bos else ""  # the space is there in training, too, as a part of "▁Below"
    assert theirs.apply_chat_template(message, tokenize=False) == bos + named.prompt(TEXT)
    ids = encode_prompt(Example("", TEXT, "", ""), model_folder.load_tokenizer(release), named)
    assert theirs.apply_chat_template(message, return_dict=True)["input_ids"] == ids
    path = release / "generation_config.json"
    settings = json.loads(path.read_text()) if path.exists() else {}
    assert settings.get("stop_strings", []) == list(named.stop)


@pytest.mark.parametrize(
    "mode, template, expected",
    [
        ("paper", "alpaca", {"max_length": 1024}),
        (None, "chatdoctor", {}),
        ("native", "alpaca", {}),
        ("native", "medalpaca", {"max_new_tokens": 128, "max_length": 1500}),
        ("native", "plain", {"temperature": 1.0, "top_k": 50, "max_length": 200}),
    ],
)
def test_what_a_mode_sets(mode, template, expected, tmp_path):
    config = dataclasses.replace(LLAMA, max_position_embeddings=1500)
    published_folders.write_json(tmp_path / "config.json", config.to_hf())
    assert generate.mode_settings(mode, template, epath.Path(tmp_path)) == expected

"""Chat templates: rendered and tokenised as transformers does it, and texts that stay texts."""

import json
import shutil
from pathlib import Path

import pytest
import tokenizers as hf_tokenizers

from alpacare_jax.data import chat_template, encoding, tokenizers
from alpacare_jax.data.tokenizers import GUARD
from common.records import Example

SYSTEM = {"role": "system", "content": " Be brief. "}
TURNS = [
    {"role": "user", "content": "What causes fever? "},
    {"role": "assistant", "content": "Infections.\n\nMostly."},
    {"role": "user", "content": "In a child, 37.5 °C?"},
    {"role": "assistant", "content": "No. 🩺"},
]
CONTROLS = {
    "llama3": ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "chatml": ["<|im_start|>", "<|im_end|>"],
    "llama2": ["<s>", "</s>"],
    "gemma": ["<bos>", "<start_of_turn>", "<end_of_turn>"],
    "zephyr": ["<|system|>", "<|user|>", "<|assistant|>", "</s>"],
}
FAMILIES = {
    "llama3": (
        "{{- bos_token }}\n"
        "{%- for message in messages %}\n"
        "    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}\n"
        "    {{- message['content'] | trim + '<|eot_id|>' }}\n"
        "{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n"
        "    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n"
        "{%- endif %}\n"
    ),
    "chatml": (
        "{% for message in messages %}{% if loop.first and message.role != 'system' %}"
        "{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{% endif %}"
        "{{ '<|im_start|>' + message.role + '\\n' }}"
        "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|im_end|>"
        "{% endgeneration %}{% else %}{{ message.content }}<|im_end|>{% endif %}\n"
        "{{ '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "llama2": (
        "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
        "{% set rest = messages[1:] %}{% else %}{% set system = false %}{% set rest = messages %}"
        "{% endif %}{% for message in rest %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% if loop.index0 == 0 and system %}{% set content = '<<SYS>>\\n' + system "
        "+ '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}"
        "{% set content = message['content'] %}{% endif %}"
        "{% if message['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
        "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "gemma": (
        "{{ bos_token }}{% for message in messages %}"
        "{% if message.role == 'system' %}{% continue %}{% endif %}"
        "{% set role = 'model' if message.role == 'assistant' else message.role %}"
        "{{ '<start_of_turn>' + role + '\\n' + message.content | trim + '<end_of_turn>\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
    ),
    "zephyr": (
        "{% for message in messages %}\n"
        "{% if message['role'] == 'user' %}\n"
        "{{ '<|user|>\\n' + message['content'] + eos_token }}\n"
        "{% elif message['role'] == 'system' %}\n"
        "{{ '<|system|>\\n' + message['content'] + eos_token }}\n"
        "{% else %}\n"
        "{{ '<|assistant|>\\n'  + message['content'] + eos_token }}\n"
        "{% endif %}\n"
        "{% if loop.last and add_generation_prompt %}\n"
        "{{ '<|assistant|>' }}\n"
        "{% endif %}\n"
        "{% endfor %}"
    ),
}
"""Templates in the manner of five families: trimming, blocks on lines of their own, defaults for
the system, other names of roles, exceptions, marks of what is generated."""


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture
def folder(family, byte_level_dir, tmp_path) -> Path:
    """A byte-level tokenizer with the control tokens and the template of a family."""
    backend = hf_tokenizers.Tokenizer.from_file(str(byte_level_dir / "tokenizer.json"))
    backend.add_special_tokens(CONTROLS[family])
    backend.save(str(tmp_path / "tokenizer.json"))
    controls = CONTROLS[family]
    settings = {"bos_token": controls[0], "eos_token": controls[-1], "pad_token": "<|endoftext|>"}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "chat_template.jinja").write_text(FAMILIES[family])
    return tmp_path


def load(folder: Path) -> tuple[tokenizers.Tokenizer, chat_template.ChatTemplate]:
    ours = tokenizers.load(folder)
    return ours, chat_template.ChatTemplate(folder, ours)


CONVERSATIONS = [TURNS[:1], TURNS[:3], TURNS, [SYSTEM, *TURNS[:3]]]


@pytest.mark.parametrize("number", range(len(CONVERSATIONS)))
@pytest.mark.parametrize("prompt", [False, True])
def test_text_and_ids_are_those_of_transformers(transformers, folder, number, prompt):
    ours, template = load(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(str(folder))
    asked = {"add_generation_prompt": prompt, "tokenize": False}
    expected = theirs.apply_chat_template(CONVERSATIONS[number], **asked)
    text = template.render(CONVERSATIONS[number], prompt=prompt)
    text = text.replace(chat_template.ANSWER, "").replace(chat_template.END, "")
    assert text == expected
    ids = theirs(expected, add_special_tokens=False).input_ids
    assert ours.encode_template(text) == ids
    assert ours.eos_id in ids or family_without_eos(folder, number)


def family_without_eos(folder: Path, number: int) -> bool:
    """The one family that ends no question with EOS, and a conversation without an answer."""
    return "[INST]" in (folder / "chat_template.jinja").read_text() and number == 0


def test_an_example_is_one_question_and_its_answer(transformers, folder):
    ours, template = load(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(str(folder))
    encoded = encoding.encode_example(Example("e", "Explain.", "MRI", "A disc."), ours, template)
    question = [{"role": "user", "content": "Explain.\n\nMRI"}]
    prompt = theirs.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    ids = theirs(prompt, add_special_tokens=False).input_ids
    assert encoded.ids[: encoded.prompt_length].tolist() == ids
    assert ours.decode(encoded.ids[encoded.loss]).strip() == "A disc."
    assert encoded.ids[-1] == ours.eos_id == encoding.end_id(ours, template)
    assert encoded.loss.tolist() == [i >= len(ids) for i in range(len(encoded.ids))]


def test_control_tokens_in_a_record_stay_text(folder):
    ours, template = load(folder)
    plain, attack = "say", f"say {''.join(ours.control_tokens)} {GUARD}x"
    for record in (Example("e", attack, attack, attack), Example("e", attack, "", "b")):
        encoded = encoding.encode_example(record, ours, template)
        harmless = encoding.encode_example(Example("e", plain, "", plain), ours, template)
        ids = encoded.ids.tolist()
        controls = [i for i in ids if i in ours.control_ids]
        assert controls == [i for i in harmless.ids.tolist() if i in ours.control_ids]
        assert ours.decode(ids).count(attack) == [record.instruction, record.input].count(
            attack
        ) + (record.output == attack)


def test_generation_marks_are_not_text(byte_level_dir, tmp_path):
    shutil.copytree(byte_level_dir, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").write_text(FAMILIES["chatml"])
    _, template = load(tmp_path)
    marked = template.render(TURNS)
    answers = [part.partition(chat_template.END)[0] for part in marked.split(chat_template.ANSWER)]
    assert answers[1:] == ["Infections.\n\nMostly.<|im_end|>", "No. 🩺<|im_end|>"]


@pytest.mark.parametrize(
    "files, found",
    [
        ({"tokenizer_config.json": {"chat_template": "settings"}}, "settings"),
        ({"chat_template.json": {"chat_template": "json"}}, "json"),
        (
            {
                "tokenizer_config.json": {
                    "chat_template": [
                        {"name": "tool_use", "template": "tools"},
                        {"name": "default", "template": "default"},
                    ]
                }
            },
            "default",
        ),
        (
            {"tokenizer_config.json": {"chat_template": "x"}, "chat_template.jinja": "file"},
            "file",
        ),
    ],
)
def test_where_a_template_is_found(byte_level_dir, tmp_path, files, found):
    shutil.copytree(byte_level_dir, tmp_path, dirs_exist_ok=True)
    for name, content in files.items():
        if isinstance(content, dict):
            path = tmp_path / name
            before = json.loads(path.read_text()) if path.is_file() else {}
            content = json.dumps(before | content)
        (tmp_path / name).write_text(content)
    _, template = load(tmp_path)
    assert template.prompt("a") == found


@pytest.mark.parametrize(
    "source, message",
    [
        ("{% for %}", "the chat template is damaged"),
        ("{{ raise_exception('no system') }}", "rejects a conversation: no system"),
        ("{{ ''.__class__.__mro__ }}", "rejects a conversation: access to attribute '__class__'"),
        ("{{ messages.append(1) }}", "rejects a conversation: access to attribute 'append'"),
        ("{{ 1 // 0 }}", "rejects a conversation"),
        ("{{ messages | length }}{{ messages[-1].content }}", "name another template"),
    ],
)
def test_what_a_template_cannot_do(byte_level_dir, tmp_path, source, message):
    shutil.copytree(byte_level_dir, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").write_text(source)
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path)[1].pieces((), "a", "", "b")
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_template_and_tokens_that_are_missing(byte_level_dir):
    ours = tokenizers.load(byte_level_dir)
    with pytest.raises(ValueError, match=r"no chat template .*choose from alpaca, baize"):
        chat_template.load("chat", byte_level_dir, ours)
    with pytest.raises(ValueError, match=r"llama3 has the control token <\|start_header_id\|>"):
        chat_template.load("llama3", byte_level_dir, ours)

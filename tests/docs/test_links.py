"""Documents hold: links and anchors lead somewhere, commands, flags, keys and names exist."""

import functools
import re
import urllib.parse

import pytest

from common import alpacare, cli, sections
from tests.conftest import REPOSITORY
from tests.docs import documents
from tests.test_structure import BANNED

DOCUMENTS = {str(path.relative_to(REPOSITORY)): path for path in documents.files()}
CONFIGS = (
    "configs/alpacare.py:llama-7b",
    "configs/quickstart.py",
    "configs/datagen.py",
    "configs/evaluation.py",
    "configs/paper.py",
)
PLACEHOLDER = re.compile(r"[A-Z]{2,}|\.\.\.|\*|<|\{|XYZ")
every_document = pytest.mark.parametrize("name", DOCUMENTS)


def read(name: str) -> str:
    return DOCUMENTS[name].read_text(encoding="utf-8")


@functools.cache
def config_keys(config: str) -> frozenset[str]:
    """Dotted keys of a config file, sections included."""
    keys = set()
    for key in sections.flatten(cli.load_config(config)):
        parts = key.split(".")
        keys |= {".".join(parts[:length]) for length in range(1, len(parts) + 1)}
    return frozenset(keys)


@every_document
def test_links_lead_somewhere(name):
    text = read(name)
    for link in documents.links(text):
        target, _, anchor = urllib.parse.unquote(link).partition("#")
        if re.match(r"[a-z]+:", target):
            assert target.startswith("https://"), link
            continue
        path = (DOCUMENTS[name].parent / target).resolve() if target else DOCUMENTS[name]
        assert path.exists(), f"{name} links to {link}"
        assert path.is_relative_to(REPOSITORY), link
        if anchor:
            known = documents.anchors(path.read_text(encoding="utf-8"))
            assert anchor in known, f"{name} links to {link}; {path.name} has {sorted(known)}"


def check_flags(name: str, known: frozenset[str], flags: list[str]) -> None:
    for flag in flags:
        plain = "config" if flag.startswith("config.") else flag
        found = {plain, plain.removeprefix("no")} & known
        assert found, f"{name}: --{flag}; known: {sorted(known)}"


def check_script(name: str, command: str, flags: list[str]) -> None:
    """A script of launch/: it exists, and some script there names each flag."""
    path = REPOSITORY / command
    assert path.exists(), f"{name}: {command}"
    if path.suffix == ".py":
        module = command.removesuffix(".py").replace("/", ".")
        check_flags(name, documents.defined_flags(module), flags)
    elif path.name != "test.sh":  # whose arguments go to pytest
        scripts = sorted((REPOSITORY / "launch").rglob("*.sh"))
        text = "".join(script.read_text(encoding="utf-8") for script in scripts)
        package = path.with_suffix("") / "__main__.py"
        if package.exists():  # all its flags are those of the module
            module = f"launch.{path.stem}.__main__"
            return check_flags(name, documents.defined_flags(module), flags)
        if found := re.search(r"exec \S+ -m (alpacare_jax\.\w+)", path.read_text(encoding="utf-8")):
            return check_flags(name, documents.defined_flags(found[1]), flags)
        for flag in flags:
            assert re.search(rf"--{flag}\b", text), f"{name}: {command} --{flag}"
    return None


def check_module(name: str, module: str, arguments: str, flags: list[str]) -> None:
    """A command that is run with `python -m`: it exists, and so do its flags and config keys."""
    assert documents.source(module).exists(), f"{name}: python -m {module}"
    if module.startswith("tests."):
        return
    check_flags(name, documents.defined_flags(module), flags)
    config = cli.config_flag(["", *arguments.split()])
    if config and not PLACEHOLDER.search(config):
        for flag in flags:
            key = flag.removeprefix("config.")
            assert key == flag or key in config_keys(config), f"{name}: --{flag} of {config}"


@every_document
def test_commands_and_flags_exist(name):
    for program, command, arguments in documents.commands(read(name)):
        flags = documents.flag_names(arguments)
        if command.startswith("-") or PLACEHOLDER.search(command):
            continue
        if program == "alpacare":
            assert command in alpacare.COMMANDS, f"{name}: alpacare {command}"
            check_module(name, alpacare.COMMANDS[command], arguments, flags)
        elif program == "bash" or command.endswith(".py"):
            check_script(name, command, flags)
        elif program == "python -m" and command.split(".")[0] in documents.FOLDERS:
            check_module(name, command, arguments, flags)


@every_document
def test_config_keys_exist(name):
    known = frozenset().union(*map(config_keys, CONFIGS))
    for key in re.findall(r"--config\.([a-z][\w.]*\w)", read(name)):
        assert key in known, f"{name}: --config.{key}"


@every_document
def test_names_in_the_code_exist(name):
    if name == "CHANGELOG.md":
        return  # it may name what is gone
    for span in documents.spans(read(name)):
        if " " in span or PLACEHOLDER.search(span):
            continue
        path, colon, function = span.partition(":")
        if path.split("/")[0] in documents.FOLDERS and "/" in path:
            file = REPOSITORY / path
            assert file.exists(), f"{name}: {span}"
            if colon and not path.startswith("configs/"):
                assert documents.defines(file, function), f"{name}: {span}"
        elif re.fullmatch(r"(common|datagen|alpacare_jax|evaluation|tests)(\.\w+)+", span):
            assert documents.resolves(span), f"{name}: {span}"


@every_document
def test_documents_are_in_plain_english(name):
    assert not (found := BANNED.findall(read(name))), f"{name}: {found}"


def test_the_readme_is_short():
    assert len(read("README.md").splitlines()) <= 150


def test_the_index_lists_every_document():
    folder = REPOSITORY / "docs"
    listed = {link.partition("#")[0] for link in documents.links(read("docs/README.md"))}
    guides = {path.name for path in folder.glob("*.md")} - {"README.md"}
    assert guides - listed == set()


def test_every_document_is_linked():
    linked = set()
    for name, path in DOCUMENTS.items():
        for link in documents.links(read(name)):
            linked.add((path.parent / link.partition("#")[0]).resolve())
    missing = [n for n, path in DOCUMENTS.items() if n.startswith("docs/") and path not in linked]
    assert missing == ["docs/README.md"] or missing == []


def test_the_checks_see_what_is_wrong():
    text = "# A `b`: c\n\n[x](y.md#z)\n\n```bash\nalpacare train \\\n    --config=a --oops=1\n```\n"
    assert documents.anchors(text) == {"a-b-c"}
    assert list(documents.links(text)) == ["y.md#z"]
    [(program, command, arguments)] = documents.commands(text)
    assert (program, command) == ("alpacare", "train")
    assert documents.flag_names(arguments) == ["config", "oops"]
    with pytest.raises(AssertionError, match="--oops"):
        check_flags("x", documents.defined_flags("alpacare_jax.train"), ["oops"])
    assert documents.resolves("datagen.chat.client.Client.ask")
    assert not documents.resolves("datagen.chat.client.Client.asks")
    assert not documents.resolves("datagen.chats")
    assert "optimizer.learning_rate" in config_keys(CONFIGS[0])
    assert "optimizer.lr" not in config_keys(CONFIGS[0])

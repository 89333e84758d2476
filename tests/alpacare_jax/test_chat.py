"""A conversation in the terminal: lines from a pipe, commands, Ctrl-C."""

import io
import sys

import jax
import pytest
from etils import epath

from alpacare_jax import chat
from alpacare_jax.inference.loading import ModelSource
from alpacare_jax.inference.sampling import Sampling
from alpacare_jax.serving.served_model import ServedModel
from common.sections import UsageError

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.fixture(scope="module")
def source(tiny_model) -> ModelSource:
    given = {"step": "best", "template": None, "max_length": None, "dtype": "float32"}
    return ModelSource(epath.Path(tiny_model), None, **given)


@pytest.fixture(scope="module")
def engine(source, quickly_compiled):
    return source.engine(jax.devices()[:1], 1, 1, Sampling())


@pytest.fixture
def converse(source, engine, monkeypatch, capsys):
    """What a conversation prints for these lines of stdin, and the conversation."""

    def run(*lines: str, system: str = "", tokens: int = 5) -> tuple[list[str], chat.Conversation]:
        conversation = chat.Conversation(engine, ServedModel.of(source, ""), system, tokens)
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        chat.run(conversation)
        return capsys.readouterr().out.splitlines(), conversation

    return run


def test_each_line_is_answered_with_those_before_it(converse):
    _, conversation = converse("what is fever", "", "why")
    assert [turn.role for turn in conversation.turns] == ["user", "assistant"] * 2
    first = conversation.turns[1].text
    assert f"what is fever\n\n### Response:{first}</s>" in conversation.prompt
    again, once = converse("why")
    assert once.turns[1].text != "" and once.prompt not in conversation.prompt
    assert "\n".join(again) == once.turns[1].text


def test_commands_start_anew_show_the_prompt_and_end(converse):
    shown, conversation = converse("why", "/new", "what", "/prompt", "/quit", "never asked")
    assert len(conversation.turns) == 2 and conversation.asked == 2
    assert "<s>Below is an instruction" in "\n".join(shown) and "### Instruction:" in shown


def test_a_line_in_another_encoding_is_an_error(source, engine, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\n"), "utf-8"))
    with pytest.raises(UsageError, match="a line is not UTF-8 text"):
        chat.run(chat.Conversation(engine, ServedModel.of(source, ""), "", 5))


def test_ctrl_c_stops_the_answer_only(converse, engine, monkeypatch):
    step = engine.step

    def interrupted():
        found = step()
        chat.signal.raise_signal(chat.signal.SIGINT)
        return found

    monkeypatch.setattr(engine, "step", interrupted)
    shown, conversation = converse("why", "what", tokens=0)
    assert len(conversation.turns) == 4 and not engine.busy
    assert "\n".join(shown).count(" [stopped]") == 2


def test_what_does_not_fit_is_one_line_with_the_remedy(converse):
    with pytest.raises(UsageError, match=r"no room for an answer .* /new starts a new"):
        converse("the" * 300)
    with pytest.raises(UsageError, match=r"no place for a system prompt.* or llama3$"):
        converse("why", system="Be brief.")
    with pytest.raises(UsageError, match="no command '/exit'; /new, /prompt or /quit"):
        converse("/exit")

"""A conversation with a model in the terminal.

    python -m alpacare_jax.chat --checkpoint=runs/alpacare-7b

Enter sends a line. /new starts a new conversation, /prompt shows what the model read last, /quit or
Ctrl-D ends it; Ctrl-C stops an answer. Lines from a pipe are answered one after the other. What the
model says is no medical advice.
"""

import contextlib
import dataclasses
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence

import jax
from absl import flags

from alpacare_jax.distributed import processes
from alpacare_jax.inference import loading, sampling
from alpacare_jax.inference.engine import Engine
from alpacare_jax.inference.requests import Request
from alpacare_jax.inference.text_stream import TextStream
from alpacare_jax.serving.errors import ApiError
from alpacare_jax.serving.served_model import ServedModel
from common import cli
from common.messages import heartbeat
from common.sections import UsageError
from common.text.conversations import Turn


class Stopped:
    """Whether Ctrl-C was pressed during an answer; inside `watch` it ends nothing else."""

    now = False

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Takes Ctrl-C for the answer that the block generates."""

        def stop(*_: object) -> None:
            self.now = True

        self.now, before = False, signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


@dataclasses.dataclass
class Conversation:
    """Questions and answers so far.

    Args:
      system: what precedes the first question; "": nothing.
      max_new_tokens: of an answer; 0: as many as there is room for.
    """

    engine: Engine
    model: ServedModel
    system: str
    max_new_tokens: int
    turns: list[Turn] = dataclasses.field(default_factory=list)
    prompt: str = ""  # that the model read last
    asked: int = 0

    def answer(self, question: str, stopped: Stopped) -> Iterator[str]:
        """The parts of the answer as they are generated; what was shown of it is remembered.

        Raises:
          UsageError: the conversation is too long, or does not fit the template.
        """
        system = [Turn("system", self.system)] if self.system else []
        try:
            prompt = self.model.chat_prompt([*system, *self.turns], question)
            room = self.model.room(prompt, None, "the conversation")
        except ApiError as error:
            too_long = error.code == "context_length_exceeded"
            hint = "; /new starts a new conversation" if too_long else ""
            raise UsageError(f"{error.message}{hint}") from None
        self.prompt, self.asked = self.model.shown(prompt), self.asked + 1
        limit = min(room, self.max_new_tokens or room)
        stream = TextStream(self.model.tokenizer, self.model.template.stop, strip=True)
        self.engine.submit(Request(self.asked, prompt.ids, limit))
        with stopped.watch():
            while self.engine.busy and not (stream.stopped or stopped.now):
                for progress in self.engine.step():
                    progress.require_finite()
                    yield stream.feed(progress.ids)
        self.engine.cancel(self.asked)
        yield stream.close()
        self.turns += [Turn("user", question), Turn("assistant", stream.text.strip())]


def run(conversation: Conversation) -> None:
    """Answers lines of stdin until its end."""
    interactive, stopped = sys.stdin.isatty(), Stopped()
    if interactive:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - it edits the lines that `input` reads
        print((__doc__ or "").split("\n\n", 2)[2].strip(), file=sys.stderr)
    while True:
        try:
            line = input("> " if interactive else "").strip()
        except EOFError:
            return
        except UnicodeDecodeError:
            raise UsageError("a line is not UTF-8 text; encode it as UTF-8") from None
        if line == "/quit":
            return
        if line == "/new":
            conversation.turns.clear()
        elif line == "/prompt":
            print(conversation.prompt)
        elif line:
            try:
                if re.fullmatch(r"/\w*", line):
                    raise UsageError(f"no command {line!r}; /new, /prompt or /quit")
                for part in conversation.answer(line, stopped):
                    print(part, end="", flush=True)
                print(" [stopped]" if stopped.now else "")
            except UsageError as error:
                if not interactive:
                    raise
                print(f"error: {error}", file=sys.stderr)


def define_flags() -> None:
    """Defines the flags of this command."""
    loading.define_flags()
    flags.DEFINE_string("system", "", "System prompt, where the template has a place for one.")
    flags.DEFINE_integer(
        "max_new_tokens", 0, "Maximum tokens of an answer; 0: up to max_length.", lower_bound=0
    )
    sampling.define_flags()


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    del argv
    FLAGS = flags.FLAGS
    processes.use_compilation_cache("")
    source = loading.from_flags(FLAGS)
    settings = sampling.from_flags(FLAGS)
    source.identity()  # an adapter must be of this base
    devices = jax.local_devices()[: FLAGS.tensor]
    with heartbeat("loading the weights"):
        engine = source.engine(devices, FLAGS.tensor, 1, settings)
    model = ServedModel.of(source, "")
    run(Conversation(engine, model, FLAGS.system, FLAGS.max_new_tokens))


if __name__ == "__main__":
    define_flags()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    cli.run(main)

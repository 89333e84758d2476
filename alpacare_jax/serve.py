"""Serves a model by OpenAI's protocol, with a chat page for people.

    python -m alpacare_jax.serve --checkpoint=runs/alpacare-7b
    curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
        -d '{"model": "alpacare-7b", "messages": [{"role": "user", "content": "What is gout?"}]}'

Answers are generated together, at most --slots at a time; --max_queue more may wait. SIGTERM or
Ctrl-C finishes what runs. On another host than this machine's own, an API key is required: in
ALPACARE_API_KEY, or in a file. docs/serving.md has the protocol, the limits and the clients.
"""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags

from alpacare_jax.distributed import processes
from alpacare_jax.inference import loading
from alpacare_jax.inference.loading import ModelSource
from alpacare_jax.inference.sampling import Sampling
from alpacare_jax.model.quantised import FORMATS
from alpacare_jax.serving import server
from alpacare_jax.serving.served_model import ServedModel
from alpacare_jax.serving.server import ServerConfig
from common import cli, paths
from common.messages import heartbeat, log
from common.sections import UsageError

KEY_VARIABLE = "ALPACARE_API_KEY"


def run(
    source: ModelSource,
    config: ServerConfig,
    *,
    name: str,
    tensor: int,
    slots: int,
    weights: str,
    invariant: bool,
) -> int:
    """Loads the model and serves it until a signal; returns the exit code."""
    with server.listen(config) as listener:
        source.identity()  # an adapter must be of this base
        with heartbeat("loading the weights"):
            devices = jax.local_devices()
            engine = source.engine(devices, tensor, slots, Sampling(), weights, invariant)
        engine.compile(log)
        model = ServedModel.of(source, name)
        return asyncio.run(server.serve(config, model, engine, listener))


def read_key(path: str) -> str:
    """The API key, from a file or the environment; "" if there is none.

    Raises:
      UsageError: the file is empty, or others may read it.
    """
    if not path:
        return os.environ.get(KEY_VARIABLE, "")
    key = Path(path).read_text("utf-8").strip()
    if Path(path).stat().st_mode & 0o077:
        raise UsageError(f"--api_key_file {path} can be read by others; run: chmod 600 {path}")
    if not key:
        raise UsageError(f"--api_key_file {path} is empty; write the key into it")
    return key


def define_flags() -> None:
    """Defines the flags of this command."""
    loading.define_flags()
    flags.DEFINE_string("name", "", "Name of the model; default: the checkpoint's folder.")
    flags.DEFINE_string("host", "127.0.0.1", "Address; other machines are let in with a key only.")
    flags.DEFINE_integer("port", 8000, "Port; 0: any that is free.", 0, 65_535)
    flags.DEFINE_string(
        "api_key_file", "", f"File with the API key, readable by you only; else {KEY_VARIABLE}."
    )
    flags.DEFINE_integer(
        "slots", 16, "Answers generated at the same time, on all devices.", lower_bound=1
    )
    flags.DEFINE_enum(
        "weights",
        "",
        ["", *FORMATS],
        "Projections in fewer bits, for a half or a quarter of the memory and other answers than "
        "generate's; default: as the adapter was trained, else --dtype.",
    )
    flags.DEFINE_bool(
        "invariant",
        False,
        "The same answer to the bit alone and among others; each step then computes all slots.",
    )
    flags.DEFINE_integer(
        "max_queue", 256, "Answers that may wait; more are refused with status 429.", lower_bound=0
    )
    flags.DEFINE_float("max_body_mib", 8.0, "Largest body of a request.", lower_bound=0.001)
    flags.DEFINE_float(
        "request_seconds", 600.0, "Until an answer must be complete, waiting included.", 0.1, 86_400
    )
    flags.DEFINE_bool("log_texts", False, "Write prompts and answers to the log.")


def main(argv: Sequence[str]) -> int:
    """Runs the command."""
    del argv
    FLAGS = flags.FLAGS
    processes.use_compilation_cache("")
    paths.check(FLAGS.api_key_file)
    config = ServerConfig(
        host=FLAGS.host,
        port=FLAGS.port,
        key=read_key(FLAGS.api_key_file),
        max_queue=FLAGS.max_queue,
        max_body_mib=FLAGS.max_body_mib,
        request_seconds=FLAGS.request_seconds,
        log_texts=FLAGS.log_texts,
    )
    return run(
        loading.from_flags(FLAGS),
        config,
        name=FLAGS.name,
        tensor=FLAGS.tensor,
        slots=FLAGS.slots,
        weights=FLAGS.weights,
        invariant=FLAGS.invariant,
    )


if __name__ == "__main__":
    define_flags()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    cli.run(main)

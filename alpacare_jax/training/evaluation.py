"""What is measured of a state on held-out examples: the loss, and answers for people to read."""

from collections.abc import Callable, Sequence

import numpy as np

from alpacare_jax.checkpoints import model_folder
from alpacare_jax.data import chat_template
from alpacare_jax.data.batches import Batcher
from alpacare_jax.data.encoding import EncodedExample
from alpacare_jax.distributed import sharding
from alpacare_jax.inference.engine import Engine
from alpacare_jax.inference.requests import Request
from alpacare_jax.model import llama
from alpacare_jax.model.llama import Params
from alpacare_jax.training.console import waiting
from alpacare_jax.training.train_step import State, StepReport, TrainingProgram

SAMPLE_TOKENS = 256
"""Maximum length of an answer of `Samples`."""


class Evaluation:
    """Evaluates states of a run on its held-out examples; does nothing where there are none."""

    def __init__(
        self,
        program: TrainingProgram,
        held_out: Batcher | None,
        eval_step: Callable[..., StepReport],
        base: Params,
    ):
        """`base` are the frozen weights of LoRA, {} without it."""
        self._program, self._base = program, base
        self._eval_step, self._arrays, self._samples = eval_step, None, None
        if held_out is None:
            return
        batch = held_out.batch(0)
        self._arrays = sharding.put_batch(batch.arrays, program.mesh)
        self._num_micro = np.int32(batch.num_micro)
        if count := program.run_config.train.samples:
            firsts = held_out.examples[:: held_out.answers]  # of a pair, the preferred answer
            self._samples = Samples(program, firsts[:count])

    def loss(self, state: State) -> dict[str, float]:
        """What a step reports, as `eval_loss` and so on; {} where nothing is held out."""
        if self._arrays is None:
            return {}
        report = self._eval_step(state["params"], self._arrays, self._num_micro, self._base)
        with waiting("evaluating the held-out examples"):
            return {f"eval_{name}": float(value) for name, value in report.items()}

    def answers(self, state: State) -> list[dict[str, str]]:
        """What `Samples.answer` returns; [] where train.samples is 0."""
        if not self._samples:
            return []
        return self._samples.answer(self._program.whole(state["params"], self._base))


class Samples:
    """Greedy answers to a few held-out prompts, by the weights that are being trained.

    The engine works on the training parameters themselves, where they are: on any mesh, and on
    several processes, all of which must call.
    """

    def __init__(self, program: TrainingProgram, examples: Sequence[EncodedExample]):
        run_config, config = program.run_config, program.model_config
        base = run_config.model
        self._tokenizer = tokenizer = model_folder.load_tokenizer(base.checkpoint)
        template = chat_template.load(run_config.data.template, base.checkpoint, tokenizer)
        limit = run_config.data.max_length + SAMPLE_TOKENS
        groups = sharding.batch_groups(program.mesh)
        platform = program.mesh.devices.flat[0].platform
        self._engine = Engine(
            {},
            config,
            dtype=llama.compute_dtype(base.dtype, platform),
            eos_ids=model_folder.eos_ids(base.checkpoint, tokenizer, template),
            max_length=min(limit, config.max_position_embeddings),
            slots=-(-len(examples) // groups) * groups,
            mesh=program.mesh if program.mesh.size > 1 else None,
            rules=run_config.sharding.rules,
        )
        self._requests, self._shown = [], []
        for i, example in enumerate(examples):
            prompt, reference = np.split(example.ids, [example.prompt_length])
            self._requests.append(Request(i, prompt.tolist(), SAMPLE_TOKENS))
            text = template.without_frame(tokenizer.decode(prompt))
            answer = tokenizer.decode(reference, continuation=True).strip()
            self._shown.append({"prompt": text, "reference": answer})

    def answer(self, params: Params) -> list[dict[str, str]]:
        """{"prompt", "reference", "output", "finish_reason"} of each example, in their order."""
        self._engine.use(params)
        with waiting("answering the sample prompts"):
            found = {answer.index: answer for answer in self._engine.run(self._requests)}
        self._engine.use({})  # the next training step donates them
        return [
            shown
            | {
                "output": self._tokenizer.decode(found[i].ids, continuation=True).strip(),
                "finish_reason": found[i].finish_reason,
            }
            for i, shown in enumerate(self._shown)
        ]

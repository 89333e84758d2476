"""Direct preference optimisation (DPO, arXiv:2305.18290): a loss on pairs of answers.

A row of a batch holds pairs, the preferred answer before the other:

    segments    = [1, 1, 1, 2, 2, 3, 3, 3, 4, 4, 4, 0]
    answer      = [chosen , rej., chosen , rejected, padding]
    pair        = [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]

What holds the model to the one that training begins with, the reference, are the log-probabilities
that it gave to the answers. They are computed once, and stored in the workdir.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from alpacare_jax.data.batches import Batcher
from common import provenance

REFERENCES = "references.json"
"""{"inputs": what they were computed from, "values": for the training and the held-out pairs in
turn [[log p(chosen), log p(rejected)], ...], "sha256": of the values}."""


@dataclasses.dataclass(frozen=True)
class PreferenceConfig:
    """Preference tuning: of pairs of answers, the model learns to prefer one."""

    beta: float  # of DPO: how closely the model is held to the base model; 0: no pairs, no DPO
    sft_weight: float  # of the chosen answers' mean loss per token, which is added; 0: none

    def __post_init__(self):
        for name in ("beta", "sft_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"preference.{name} must be at least 0, not {getattr(self, name)}")
        if self.sft_weight and not self.beta:
            raise ValueError("preference.sft_weight needs preference.beta, such as 0.1")

    @property
    def answers(self) -> int:
        """Answers of each record of the data: one, or the two of a pair."""
        return 2 if self.beta else 1

    @property
    def reported(self) -> tuple[str, ...]:
        """What a step reports beside its loss, as `loss` describes it."""
        names = ("pair_accuracy", "reward_margin", "chosen_log_prob", "rejected_log_prob")
        return (*names, "chosen_loss") if self.beta else ()


def answer_sums(values_RT: jax.Array, segments_RT: jax.Array) -> jax.Array:
    """Sums of values over the tokens of each answer, [R, pairs, 2]; 0 where a row has fewer pairs.

    A pair has at least four tokens, two of each answer, so a row has room for T / 4 pairs.
    """
    R, T = values_RT.shape
    most = 2 * max(1, T // 4)
    sums = jax.vmap(lambda x, ids: jax.ops.segment_sum(x, ids, num_segments=most + 1))
    return sums(values_RT, segments_RT)[:, 1:].reshape(R, most // 2, 2)


def loss(
    log_probs_RT: jax.Array, micro: Mapping[str, jax.Array], config: PreferenceConfig
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """This micro-batch's part of the mean loss of a step's pairs, and of what is reported.

        reward  = beta * (log p(answer) - log p_reference(answer))
        loss    = mean over pairs of -log sigmoid(reward of chosen - reward of rejected)
                + sft_weight * mean over tokens of chosen answers of -log p(token)

    Reported, as means over the pairs: `pair_accuracy`, where chosen has the higher reward;
    `reward_margin`, the difference; `chosen_log_prob` and `rejected_log_prob`, of whole answers;
    and `chosen_loss`, the mean over tokens that sft_weight applies to.

    Args:
      log_probs_RT: of each target, 0 elsewhere.
      micro: the arrays of `data.token_store.Step` with those of pairs, [R, T] each.
    """
    policy, references, weights = (
        answer_sums(values, micro["segments"])
        for values in (log_probs_RT, micro["references"], micro["pair_weights"])
    )
    weights = weights[..., 1]
    chosen, rejected = jnp.moveaxis(policy, -1, 0)
    rewards = config.beta * (policy - references)
    margin = rewards[..., 0] - rewards[..., 1]
    is_chosen = micro["segments"] % 2 == 1
    chosen_loss = -jnp.sum(jnp.where(is_chosen, micro["weights"] * log_probs_RT, 0))
    means = {
        name: jnp.sum(weights * value)
        for name, value in {
            "pair_accuracy": margin > 0,
            "reward_margin": margin,
            "chosen_log_prob": chosen,
            "rejected_log_prob": rejected,
        }.items()
    }
    value = jnp.sum(weights * jax.nn.softplus(-margin)) + config.sft_weight * chosen_loss
    return value, means | {"chosen_loss": chosen_loss}


def reference_log_probs(
    batcher: Batcher, sums: Callable[[dict[str, np.ndarray]], jax.Array]
) -> np.ndarray:
    """[examples] float32: the log-probabilities of all answers, batched and packed as in training.

    Args:
      sums: one micro-batch, [1, R, T] each -> its `answer_sums`.
    """
    pairs = np.zeros((batcher.num_records, 2), np.float32)
    for numbers in np.split(
        np.arange(len(pairs)), range(batcher.batch_size, len(pairs), batcher.batch_size)
    ):
        step = batcher.batch_of(numbers)
        micro = [
            {name: array[i : i + 1] for name, array in step.arrays.items()}
            for i in range(step.num_micro)
        ]
        found = np.concatenate([np.asarray(part) for part in list(map(sums, micro))])
        segments = step.arrays["segments"][: step.num_micro]
        counts = segments.max(axis=-1).reshape(-1, 1) // 2  # pairs of each row
        pairs[step.records] = found[np.arange(found.shape[1]) < counts]
    return pairs.ravel()


def digest(batchers: Sequence[Batcher]) -> str:
    """SHA-256 of the tokens of all pairs, and of which of them are targets."""
    found = hashlib.sha256()
    for batcher in batchers:
        for example in batcher.examples:
            counts = np.array([len(example.ids), example.num_targets], np.int64)
            found.update(counts.tobytes() + example.ids.tobytes())
    return found.hexdigest()


def write_references(
    path: epath.Path, inputs: Mapping[str, Any], values: Sequence[np.ndarray]
) -> None:
    """Stores the log-probabilities of each batcher's answers, and what they were computed from."""
    pairs = [each.reshape(-1, 2).tolist() for each in values]
    content = {"inputs": dict(inputs), "values": pairs, "sha256": _sha256(values)}
    provenance.write_text(path, json.dumps(content) + "\n")


def read_references(path: epath.Path, inputs: Mapping[str, Any]) -> list[np.ndarray]:
    """What `write_references` stored.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged, or was computed from another model or other pairs.
    """
    remedy = f"delete {path}: the values are computed again"
    try:
        content = provenance.read_json(path)
        values = [np.array(each, np.float32).ravel() for each in content["values"]]
        intact = content["sha256"] == _sha256(values)
        before = content["inputs"]
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{path} is damaged; {remedy}") from None
    if not intact:
        raise ValueError(f"{path} is damaged: its checksum differs; {remedy}")
    if found := provenance.differences(before, inputs):
        raise ValueError(f"{path} is of other inputs ({provenance.as_text(found)}); {remedy}")
    return values


def _sha256(values: Sequence[np.ndarray]) -> str:
    return hashlib.sha256(b"".join(each.tobytes() for each in values)).hexdigest()

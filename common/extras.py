"""Packages that only some commands need, and the extra of setup.py that installs each."""

OPTIONAL = {
    "gcsfs": "gcs",
    "gguf": "convert",
    "huggingface_hub": "release",
    "jsonschema": "serve",
    "libtpu": "tpu",
    "prometheus_client": "serve",
    "pyarrow": "parquet",
    "starlette": "serve",
    "tensorboardX": "tensorboard",
    "torch": "torch",
    "transformers": "release",
    "uvicorn": "serve",
    "wandb": "wandb",
    "xllamacpp": "release",
    "yaml": "release",
}
"""Top-level modules that one feature of a command needs -> its extra. All other packages are needed
by every command of our own package, whose extra is given to `exits.watch`."""


def advice(error: ModuleNotFoundError, extra: str) -> str:
    """What to install after `error`; "" where a module of our own is missing.

    >>> advice(ModuleNotFoundError("No module named 'jax'", name="jax.numpy"), "train")
    "the package jax is not installed; run: pip install '.[train]'"
    """
    module = (error.name or "").partition(".")[0]
    if not module or module in ("alpacare_jax", "common", "configs", "datagen", "evaluation"):
        return ""
    return (
        f"the package {module} is not installed; "
        f"run: pip install '.[{OPTIONAL.get(module, extra)}]'"
    )

"""Metadata and dependencies; constraints.txt holds the exact versions that CI uses."""

from pathlib import Path

from setuptools import find_packages, setup

PACKAGES = ("alpacare_jax", "common", "datagen", "evaluation")
GCS = ["gcsfs>=2026.10"]

setup(
    name="alpacare-jax",
    version="0.1.0",
    description="Domain instruction tuning of LLaMA in JAX, medicine first",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=[f"{name}*" for name in PACKAGES]),
    package_data={
        "datagen": ["starter/*", "prompts/*", "prices.json"],
        "evaluation": ["prompts/*", "reference_prompts/*", "reporting/web/*"],
    },
    install_requires=[
        "jax>=0.10,<0.13",
        "flax>=0.12.8,<0.13",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.8,<0.13",
        "tensorstore>=0.1.74",
        "sentencepiece>=0.2.1",
        "tokenizers>=0.22",
        "openai[aiohttp]>=3,<4",
        "anthropic[aiohttp]>=2,<3",
        "py3langid>=0.4,<0.5",
        "rapidfuzz>=3.14,<4",
        "rouge-score>=0.1.2",
        "etils[epath]>=1.15",
        "absl-py>=2.1",
        "ml-collections>=1.1",
        "numpy>=2",
        "matplotlib>=3.10",
    ],
    extras_require={
        "tpu": ["jax[tpu]", *GCS],
        "gpu": ["jax[cuda13]"],
        "gcs": GCS,
        "convert": ["gguf>=0.17"],
        "tensorboard": ["tensorboardX>=2.6"],
        "test": [
            *GCS,
            "hypothesis>=6",
            "pytest>=9",
            "pytest-xdist>=3.8",
            "ruff==0.17.6",
            "protobuf>=5",
            "safetensors>=0.6",
            "transformers>=5,<6",
        ],
    },
)

"""Metadata and dependencies; constraints.txt holds the exact versions that CI uses."""

from pathlib import Path

from setuptools import find_packages, setup

PACKAGES = ("alpacare_jax", "common", "datagen", "evaluation")

TRAIN = [
    "jax>=0.10,<0.13",
    "flax>=0.12.8,<0.13",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    "tensorstore>=0.1.74",
    "google-crc32c>=1.5",
    "safetensors>=0.6",
    "sentencepiece>=0.2.1",
    "tokenizers>=0.22",
    "jinja2>=3.1.6",  # older ones can be escaped from
]
EVALUATION = [
    "openai[aiohttp]>=3,<4",
    "anthropic[aiohttp]>=2,<3",
    "rapidfuzz>=3.14,<4",
    "matplotlib>=3.10",
]
DATAGEN = [*EVALUATION, "py3langid>=0.4,<0.5"]
SERVE = [
    *TRAIN,
    "jsonschema>=4.23",
    "prometheus-client>=0.22",
    "starlette>=1,<2",
    "uvicorn>=0.40",
]
CONVERT = [*TRAIN, "gguf>=0.17"]
GCS = ["gcsfs>=2026.10"]
TENSORBOARD = ["tensorboardX>=2.6"]
RELEASE = [
    *CONVERT,
    "huggingface_hub>=2",
    "pyyaml>=6",
    "torch>=2.6",
    "transformers>=5,<6",
    "xllamacpp>=2026.10",  # llama.cpp, prebuilt
]
TORCH = ["torch>=2.6"]  # to read its files; not in [all], for its CUDA build takes gigabytes
WANDB = ["wandb>=0.22"]
PARQUET = ["pyarrow>=21"]
ALL = [*CONVERT, *SERVE, *DATAGEN, *GCS, *TENSORBOARD, *WANDB, *PARQUET]

setup(
    name="alpacare-jax",
    version="0.1.0",
    description="Domain instruction tuning of LLaMA in JAX, medicine first",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The alpacare-jax authors",
    license="Apache-2.0",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=find_packages(include=[f"{name}*" for name in PACKAGES]),
    package_data={
        "alpacare_jax": ["py.typed", "serving/web/*"],
        "common": ["py.typed", "reports/page.css"],
        "datagen": ["py.typed", "starter/*", "prompts/*", "prices.json"],
        "evaluation": [
            *("py.typed", "prompts/*", "reference_prompts/*", "grader_prompts/*"),
            *("reporting/web/*", "annotation/web/*", "publishing/checklists.json"),
        ],
    },
    entry_points={"console_scripts": ["alpacare = common.alpacare:main"]},
    install_requires=[  # what `common` needs
        "absl-py>=2.1",
        "etils[epath]>=1.15",
        "ml-collections>=1.1",
        "numpy>=2",
    ],
    extras_require={
        "train": TRAIN,
        "datagen": DATAGEN,
        "evaluation": EVALUATION,
        "convert": CONVERT,
        "release": RELEASE,
        "serve": SERVE,
        "tpu": [*TRAIN, "jax[tpu]", *GCS],
        "gpu": [*TRAIN, "jax[cuda13]"],
        "gcs": GCS,
        "tensorboard": TENSORBOARD,
        "wandb": WANDB,
        "parquet": PARQUET,
        "torch": TORCH,
        "all": ALL,
        "test": [
            *ALL,
            "basedpyright==1.40.2",
            "hypothesis>=6",
            "pytest>=9",
            "pytest-xdist>=3.8",
            "rouge-score>=0.1.2",
            "ruff==0.17.6",
            "protobuf>=5",
            "tiktoken>=0.12",
            "transformers>=5,<6",
            "xllamacpp>=2026.10",
        ],
    },
)

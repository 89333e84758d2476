"""Ends with an error where a package that launch/gpu_check.sh needs is missing, or JAX sees no GPU.

python -m launch.gpu_packages 0|1    1: a try on the CPU
"""

import importlib
import importlib.metadata
import pathlib
import re
import sys

NAMES = (
    "absl etils.epath flax.nnx jax ml_collections optax orbax.checkpoint tensorstore tokenizers "
    "pytest alpacare_jax.train"
)


def main(on_cpu: str) -> None:
    missing = []
    for name in NAMES.split():
        try:
            importlib.import_module(name)
        except ImportError as error:
            missing.append(f"{name} ({error})")
    if missing:
        names = "; ".join(missing)
        sys.exit(
            f"error: {sys.executable} lacks {names}; install them, constraints.txt has versions"
        )
    from packaging.requirements import Requirement  # pytest needs it, too

    for requirement in re.findall(r'"([\w.-]+[<>=][^"]*)"', pathlib.Path("setup.py").read_text()):
        wanted = Requirement(requirement)
        try:
            found = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            continue  # not needed here
        if found not in wanted.specifier:
            print(f"warning: {wanted.name} {found} is installed, setup.py requires {wanted}")
    if on_cpu == "0":
        import jax

        if (backend := jax.default_backend()) != "gpu":
            sys.exit(f"error: jax sees {backend} only; install jax[cuda13], or check nvidia-smi")


if __name__ == "__main__":
    main(sys.argv[1])

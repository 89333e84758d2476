"""Paths: folders of this machine, and Google Cloud Storage buckets (`gs://BUCKET/...`).

`etils.epath.Path` reads and writes both, as Orbax does. A bucket differs in this: an object appears
whole when its upload ends, replaces the old one at that moment, and cannot be appended to.
"""

import difflib
import os
import re
import sys
from pathlib import PurePath

from etils import epath

from common import exits
from common.sections import UsageError

BUCKET = "gs://"

HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
"""How models of the Hugging Face Hub are named: owner/name."""

GIT_LFS = b"version https://git-lfs.github.com/spec/"
"""The first words of a git-lfs pointer, which stands for a file that was not downloaded."""


def in_bucket(path: str | PurePath) -> bool:
    """Whether a path is in a bucket."""
    return os.fspath(path).startswith(BUCKET)


def check(*paths: str) -> None:
    """Checks that each path's bucket exists and can be read, before any work; skips empty paths.

    Raises:
      ValueError: a path is neither local nor `gs://`, or a package is missing.
      OSError: a bucket does not exist or may not be read.
    """
    for path in filter(None, paths):
        if in_bucket(path):
            _check_bucket(path.removeprefix(BUCKET).partition("/")[0])
        elif "://" in path:
            raise UsageError(f"{path}: give a local folder or gs://BUCKET/...")


def require(path: str | PurePath) -> None:
    """Raises FileNotFoundError if nothing is at `path`."""
    if not epath.Path(path).exists():
        raise FileNotFoundError(absence(path))


def absence(path: str | PurePath, of: str = "file or folder") -> str:
    """That nothing is at `path`, and what may be meant: of the project, a neighbour, or of the Hub.

    Args:
      of: what was looked for; a "file" is one of data, anything else a model.
    """
    name, place = os.fspath(path), epath.Path(path)
    text = f"no such {of}: {name}"
    if not place.is_absolute() and (ours := exits.ROOT / name).exists():
        return f"{text}; the project has {ours}"
    if not in_bucket(path) and os.access(place.parent, os.R_OK):
        near = difflib.get_close_matches(place.name, os.listdir(place.parent), n=1, cutoff=0.8)
        return f"{text}; did you mean {place.parent / near[0]}?" if near else text
    if not HUB_ID.fullmatch(name) or (of == "file" and place.suffix):
        return text
    folder = name.partition("/")[2]
    if of == "file":
        return (
            f"{text}; a data set of the Hugging Face Hub is downloaded first: "
            f"hf download --repo-type=dataset {name} --local-dir=data/{folder}"
        )
    return (
        f"{text}; a model of the Hugging Face Hub is downloaded and converted first: hf download "
        f"{name} --local-dir hf/{folder}, then python -m alpacare_jax.convert from_hf "
        f"--source=hf/{folder} --target=models/{folder}"
    )


def require_content(path: str | PurePath) -> None:
    """Raises ValueError if a file is only the git-lfs pointer to its content."""
    with epath.Path(path).open("rb") as file:
        if file.read(len(GIT_LFS)) == GIT_LFS:
            raise ValueError(
                f"{path} is a git-lfs pointer, not the file; run `git lfs pull` in its folder, or "
                "download the model with `hf download`"
            )


def _check_bucket(name: str) -> None:
    # This feature needs further permissions and gains nothing for small files.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    try:
        import fsspec.config
        import gcsfs.retry  # noqa: F401
    except ImportError:
        raise ValueError(f"{BUCKET}{name} needs the extra: pip install '.[gcs]'") from None
    # Other processes and tensorstore write to the bucket too, so listings must not be cached.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    try:
        if epath.Path(BUCKET + name).exists():
            return
        reason = "it does not exist"
    except (OSError, *outages()) as error:
        reason = str(error)
    raise OSError(
        f"bucket {BUCKET}{name}: {reason}; create it, or let this account read buckets and objects "
        "(gcloud auth application-default login; on Google Cloud, the machine's service account)"
    )


def outages() -> tuple[type[Exception], ...]:
    """Errors other than OSError that mean that a bucket stayed unavailable through all retries.

    Empty unless `check` has seen a bucket: it loads the libraries that raise them.
    """
    if "gcsfs" not in sys.modules:
        return ()
    from aiohttp import ClientError
    from gcsfs.retry import ChecksumError, HttpError
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError

    return (HttpError, ChecksumError, ClientError, GoogleAPIError, GoogleAuthError)


def absolute(path: str | PurePath) -> epath.Path:
    """Canonical path: absolute, with links and `..` resolved; a bucket's path is unchanged."""
    return epath.Path(path if in_bucket(path) else os.path.realpath(path))

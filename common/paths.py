"""Where files lie: folders of this machine, and Google Cloud Storage buckets (`gs://BUCKET/...`).

`etils.epath.Path` reads and writes both, as Orbax does. A bucket differs in this: an object appears
whole once its upload ends, replaces the old one at that moment, and cannot be appended to.
"""

import os
import sys
from pathlib import PurePath

from etils.epath import Path

BUCKET = "gs://"


def in_bucket(path: str | PurePath) -> bool:
    return os.fspath(path).startswith(BUCKET)


def check(*paths: str) -> None:
    """Looks at each path's bucket, before anything else is done; empty paths are left out.

    Raises:
      ValueError: a path is neither of this machine nor `gs://`, or a package is missing.
      OSError: a bucket does not exist or may not be read.
    """
    for path in filter(None, paths):
        if in_bucket(path):
            _check_bucket(path.removeprefix(BUCKET).partition("/")[0])
        elif "://" in path:
            raise ValueError(f"{path}: give a folder of this machine or gs://BUCKET/...")


def _check_bucket(name: str) -> None:
    # What is off needs further permissions, and gains nothing where files are small.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    try:
        import fsspec
        import gcsfs.retry  # noqa: F401
    except ImportError:
        raise ValueError(
            f"{BUCKET}{name} needs the extra: pip install 'alpacare-jax[gcs]'"
        ) from None
    # Other processes and tensorstore write to the bucket too, so no listing may be remembered.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    try:
        if Path(BUCKET + name).exists():
            return
        found = "there is none"
    except (OSError, *outages()) as error:
        found = str(error)
    raise OSError(
        f"bucket {BUCKET}{name}: {found}; create it, or let this account read buckets and objects "
        "(gcloud auth application-default login; on Google Cloud, the machine's service account)"
    )


def outages() -> tuple[type[Exception], ...]:
    """What is raised, beside OSError, where a bucket stops answering for longer than is retried.

    Nothing where no bucket was looked at: `check` loads the libraries that raise it.
    """
    if "gcsfs" not in sys.modules:
        return ()
    from aiohttp import ClientError
    from gcsfs.retry import ChecksumError, HttpError
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError

    return (HttpError, ChecksumError, ClientError, GoogleAPIError, GoogleAuthError)


def absolute(path: str | PurePath) -> Path:
    """The one name of a place: absolute, links followed; a bucket's path is that already."""
    return Path(path if in_bucket(path) else os.path.realpath(path))

"""Addresses with a scheme (s3://, gs://, hf://, https://): their file systems, and their errors in one sentence."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import fsspec

from vlp.errors import UserError, WorkError

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|pipe:")
EXTRA = {"s3": "s3", "s3a": "s3"}  # the extra of vlp that a scheme needs
NO_CREDENTIALS = ("Unable to locate credentials", "NoCredentials", "credentials were not found")
EXPIRED = ("ExpiredToken", "token has expired", "TokenRefreshRequired")


def is_remote(path: str) -> bool:
    """Whether a path is an address with a scheme, such as s3://bucket/0.tar or pipe:COMMAND."""
    return SCHEME.match(path) is not None


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path in it.

    Raises:
        UserError: fsspec does not know the scheme, or lacks the package for it.
    """
    scheme = url.partition("://")[0]
    try:
        return cast(tuple[Any, str], fsspec.url_to_fs(url))
    except (ImportError, ValueError) as error:
        advice = f"; pip install 'vlp[{EXTRA[scheme]}]'" if scheme in EXTRA and isinstance(error, ImportError) else ""
        raise UserError(f"{url} cannot be read: {' '.join(str(error).split()).rstrip('.')}{advice}.") from None


@contextmanager
def remote_errors(url: str) -> Iterator[None]:
    """Turn errors of a remote file system into one sentence.

    Raises:
        UserError: there is no such file or bucket, or no credentials, or access is denied.
        WorkError: the connection fails, or the credentials expired.
    """
    try:
        yield
    except (UserError, WorkError):
        raise
    except FileNotFoundError:
        raise UserError(f"{url} does not exist; check the address.") from None
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
        if any(words in text for words in EXPIRED):
            raise WorkError(f"{url}: the credentials have expired; renew them and rerun the command.") from None
        if any(words in text for words in NO_CREDENTIALS):
            raise UserError(f"{url}: there are no credentials; set those of the object store.") from None
        if isinstance(error, PermissionError):
            raise UserError(f"{url}: access is denied ({text}); check the credentials.") from None
        if isinstance(error, OSError) or "botocore" in type(error).__module__ or "aiohttp" in type(error).__module__:
            raise WorkError(f"{url} cannot be reached ({text}); rerun the command to continue.") from None
        raise

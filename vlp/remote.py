"""Addresses with a scheme (s3://, gs://, hf://, https://): their file systems, and their errors in one sentence."""

import errno
import http.client
import re
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import fsspec

from vlp.errors import UserError, WorkError

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|pipe:")
EXTRA = {"s3": "s3", "s3a": "s3"}  # the extra of vlp that a scheme needs
NO_CREDENTIALS = ("Unable to locate credentials", "NoCredentials", "credentials were not found")
EXPIRED = ("ExpiredToken", "token has expired", "TokenRefreshRequired", "Request has expired")
PASSING = (408, 425, 429, 500, 502, 503, 504)  # HTTP statuses after which a later attempt may succeed
BODY = 2000  # bytes of an error message that are read


class ExpiredCredentialsError(WorkError):
    """The credentials of an object store have expired, so that every further request fails."""


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


def is_transient(error: Exception) -> bool:
    """Whether a later attempt may succeed: connections that break or time out, and servers that are overloaded."""
    if isinstance(error, UserError | WorkError | FileNotFoundError | PermissionError):
        return False
    if isinstance(error, urllib.error.HTTPError):
        return error.code in PASSING
    if isinstance(error, OSError):
        return error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE) and not _names(
            error, NO_CREDENTIALS + EXPIRED
        )
    kind = type(error).__module__
    passing = "aiohttp" in kind or ("botocore" in kind and "Connect" in type(error).__name__)
    return passing or isinstance(error, http.client.HTTPException)


def _names(error: Exception, words: tuple[str, ...]) -> bool:
    return any(word in f"{type(error).__name__}: {error}" for word in words)


def _answer(error: urllib.error.HTTPError) -> str:
    """What a server says of a failed request, such as `403 Forbidden, AccessDenied: Access Denied`."""
    try:
        body = error.read(BODY).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException, ValueError):
        body = ""
    parts = [re.search(f"<{tag}>([^<]*)</{tag}>", body) for tag in ("Code", "Message")]
    detail = ": ".join(part[1] for part in parts if part)
    return f"HTTP status {error.code} {error.reason}{', ' if detail else ''}{detail}"


def _expired(url: str) -> ExpiredCredentialsError:
    return ExpiredCredentialsError(f"{url}: the credentials have expired; renew them, then continue the work.")


def _http_error(url: str, error: urllib.error.HTTPError) -> UserError | WorkError:
    text = " ".join(_answer(error).split()).rstrip(".")
    if any(words in text for words in EXPIRED):
        return _expired(url)
    if error.code in (404, 410):
        what = "its bucket does not exist" if "NoSuchBucket" in text else "it does not exist"
        return UserError(f"{url} cannot be read, because {what}; check the address.")
    if error.code in (401, 403):
        return UserError(f"{url}: access is denied ({text}); check the credentials.")
    if error.code in PASSING:
        return WorkError(f"{url} cannot be reached ({text}); rerun the command to continue.")
    return UserError(f"{url} cannot be read ({text}); check the address and the settings of the object store.")


@contextmanager
def remote_errors(url: str) -> Iterator[None]:
    """Turn errors of a remote file system into one sentence.

    Raises:
        UserError: there is no such file or bucket, or no credentials, or access is denied.
        WorkError: the connection fails, or the credentials expired.
        OSError: a local disk is full.
    """
    try:
        yield
    except (UserError, WorkError):
        raise
    except FileNotFoundError:
        raise UserError(f"{url} does not exist; check the address.") from None
    except urllib.error.HTTPError as error:
        raise _http_error(url, error) from None
    except Exception as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise  # of a local disk
        text = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
        if any(words in text for words in EXPIRED):
            raise _expired(url) from None
        if any(words in text for words in NO_CREDENTIALS):
            raise UserError(f"{url}: there are no credentials; set those of the object store.") from None
        if isinstance(error, PermissionError):
            raise UserError(f"{url}: access is denied ({text}); check the credentials.") from None
        if (
            isinstance(error, OSError | http.client.HTTPException)
            or "botocore" in type(error).__module__
            or "aiohttp" in type(error).__module__
        ):
            raise WorkError(f"{url} cannot be reached ({text}); rerun the command to continue.") from None
        raise

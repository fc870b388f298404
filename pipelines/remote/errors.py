"""Errors of object stores: each names the object, none contains a credential."""

from __future__ import annotations

import re
from http import HTTPStatus

from pipelines.errors import DataError
from pipelines.remote.uri import Uri

CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or a role of the machine or pod "
    "(AWS_SKIP_SIGNATURE=true for a public bucket)",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, `gcloud auth application-default login` or workload identity "
    "(GOOGLE_SKIP_SIGNATURE=true for a public bucket)",
    "az": "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN or workload "
    "identity (AZURE_SKIP_SIGNATURE=true for a public container)",
}


class StoreError(DataError):
    """Base of the errors of a request to an object store."""


class ObjectMissingError(StoreError):
    """There is no such object or bucket."""


class StoreUnavailableError(StoreError):
    """The store did not respond, or failed, until the time for retries was over."""


class ConflictError(StoreError):
    """A conditional write found an object that it must not replace."""


class AccessDeniedError(StoreError):
    """Credentials are missing, expired or rejected, or lack a permission."""


class CorruptObjectError(StoreError):
    """The bytes of an object are not those that were recorded."""


_CLOCK = {"RequestTimeTooSkewed", "RequestExpired"}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"}
_REJECTED = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "AuthenticationFailed"}
_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
_NO_BUCKET = {"NoSuchBucket", "ContainerNotFound", "InvalidBucketName"}
# Addresses at which the clients look for the identity of a machine or pod when nothing else is configured.
_IDENTITY_SERVICES = ("169.254.169.254", "169.254.170.", "metadata.google", "sts.", "/oauth2/", "oauth2.")


def read_status(error: BaseException) -> int | None:
    """Returns the HTTP status in a client's error, or None if there was no response."""
    match = re.search(r"status code: (\d{3})", str(error)) or re.search(r"status: (\d{3})", str(error))
    return int(match[1]) if match else None


def read_code(error: BaseException) -> str:
    """Returns the store's own name of a failure, such as `NoSuchKey`; empty if there is none."""
    text = str(error)
    match = re.search(r"<Code>(\w+)</Code>", text) or re.search(r'\\?"reason\\?": *\\?"(\w+)', text)
    return match[1] if match else ""


def is_transient(error: BaseException) -> bool:
    """Returns whether the same request may succeed later."""
    if type(error).__name__ not in ("GenericError", "JoinError"):
        return False
    if _is_about_identity(error) or _is_about_options(error):
        return False
    if "configured region" in str(error):
        return False
    status = read_status(error)
    return status is None or (status >= 500 and status != 501) or status in (408, 409, 425, 429)


def translate_error(error: BaseException, uri: Uri) -> StoreError:
    """Returns the error in one sentence that names the object; nothing of a URL's query is in it.

    Args:
        error: Exception of the client.
        uri: Object or prefix of the request.
    """
    kind = type(error).__name__
    code = read_code(error)
    status = read_status(error)
    received = f"response={code or _describe_response(error, status)}"
    bucket_word = "container" if uri.scheme == "az" else "bucket"

    if code in _NO_BUCKET or "specified bucket does not exist" in str(error):
        return ObjectMissingError(
            f"{bucket_word} {uri.bucket!r} to exist for {uri}",
            received,
            f"create the {bucket_word}, or correct its name, the endpoint or the account",
        )
    if code in _CLOCK or "Date header" in str(error):
        return AccessDeniedError(
            f"a clock that agrees with the store's for {uri}",
            received,
            "synchronize the clock of this machine (NTP)",
        )
    if code in _EXPIRED:
        return AccessDeniedError(
            f"credentials that are still valid for {uri}",
            received,
            "renew the session, or use a profile or workload identity, which are renewed while a run lasts",
        )
    if code in _REGION or "configured region" in str(error):
        return AccessDeniedError(
            f"the region of {bucket_word} {uri.bucket!r} for {uri}",
            received,
            "set AWS_REGION to the bucket's region",
        )
    if kind in ("AlreadyExistsError", "PreconditionError", "NotModifiedError"):
        return ConflictError(
            f"nobody else to have written {uri}",
            f"response={'the object exists' if kind == 'AlreadyExistsError' else 'the object has changed'}",
            "read it again, or use another name",
        )
    if code == "InvalidRange" or status == 416:
        return CorruptObjectError(f"more bytes in {uri}", received, "upload the object again")
    if kind == "FileNotFoundError" or status == 404:
        return ObjectMissingError(f"an object at {uri}", received, "check the name and the bucket")
    is_denied = kind in ("PermissionDeniedError", "UnauthenticatedError") or status in (401, 403)
    if code in _REJECTED or is_denied or _is_about_identity(error):
        return _explain_denial(uri, code, received, _is_about_identity(error))
    if is_transient(error):
        return StoreUnavailableError(
            f"the store of {uri} to respond",
            received,
            "check the network, the endpoint and the state of the store, then start again",
        )
    return StoreUnavailableError(
        f"the store to accept a request for {uri}",
        received,
        "check the name, the endpoint and what the store supports",
    )


def _explain_denial(uri: Uri, code: str, received: str, is_missing: bool) -> AccessDeniedError:
    sources = CREDENTIALS.get(uri.scheme, "an address that needs no credentials")
    if is_missing:
        return AccessDeniedError(f"credentials for {uri}", "credentials=none found", f"set {sources}")
    if code in _REJECTED:
        return AccessDeniedError(
            f"credentials that the store accepts for {uri}", received, f"check {sources}"
        )
    return AccessDeniedError(
        f"credentials that may use {uri}", received, f"grant the permission, or check {sources}"
    )


def _is_about_identity(error: BaseException) -> bool:
    first_line = _scrub(str(error).split("\n", 1)[0])
    return any(service in first_line for service in _IDENTITY_SERVICES)


def _is_about_options(error: BaseException) -> bool:
    """Returns whether the client refused its own options, so that nothing was sent."""
    first_line = str(error).split("\n", 1)[0]
    return not re.search(r"https?://|HTTP error|request|timed out|connection|body", first_line, re.IGNORECASE)


def _describe_response(error: BaseException, status: int | None) -> str:
    """Returns a status with its name, or a client's first line without addresses, which can be signed."""
    if status is not None:
        name = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "status"
        return f"{status} {name}"
    first_line = _scrub(str(error).split("\n", 1)[0])
    if "configured region" in first_line:
        return "redirect"
    reason = re.search(
        r"(error sending request|timed out|connection [a-z ]+|error decoding response body)", str(error)
    )
    if reason and "://" in first_line:
        return reason[1]
    return re.sub(r"\S+://\S+", "...", first_line)[:160].rstrip(". ") or type(error).__name__


def _scrub(text: str) -> str:
    """Removes what follows "?" from every address in a text."""
    return re.sub(r"(\w+://[^\s?\"']+)\?[^\s\"']*", r"\1", text)

"""Opens the client of a bucket with its options from the environment."""

from __future__ import annotations

import functools
import json
import os
from datetime import timedelta
from typing import Any

from pipelines.errors import ConfigError
from pipelines.remote.credentials import find_aws_profile, find_google_provider, read_azure_connection
from pipelines.remote.errors import AccessDeniedError
from pipelines.remote.retry import read_timeout
from pipelines.remote.uri import Uri

# Variables of which the client, or this module, reads some.
_PREFIXES = (
    "AWS_",
    "GOOGLE_",
    "AZURE_",
    "AZURITE_",
    "STORAGE_EMULATOR_HOST",
    "GLASSBOX_STORE_",
    "HOME",
    "IDENTITY_",
)

CONNECT_TIMEOUT_S = 5.0
# Time without a byte of the response. The upload of one part must fit in it as well.
SILENCE_TIMEOUT_S = 60.0
# The client's own limit for a whole response: it must not end the transfer of a large object.
TRANSFER_TIMEOUT = timedelta(hours=6)
# The client repeats single requests, such as one part of an upload; `retry` repeats whole operations while
# the store is down.
CLIENT_RETRIES = 4


def open_client(uri: Uri, retries: bool = True) -> Any:
    """Returns the client of a URI's bucket; the same one for all threads of a process.

    Args:
        uri: Any object of the bucket.
        retries: Whether the client itself repeats failed requests.

    Raises:
        ConfigError: Contradictory or incomplete options, or a process forked from one that used a store.
        AccessDeniedError: The client finds no account or no valid credentials.
    """
    _check_fork(_owner())
    environment = tuple(sorted(item for item in os.environ.items() if item[0].startswith(_PREFIXES)))
    return _open(uri.scheme, uri.bucket, retries, environment)


@functools.lru_cache(maxsize=1)
def _owner() -> int:
    """Returns the process that used a store first."""
    return os.getpid()


def _check_fork(owner: int) -> None:
    """Refuses to work in a forked process, where the client's threads are missing: it would wait forever."""
    if owner != os.getpid():
        raise ConfigError(
            "a process that was not forked from one that uses an object store",
            f"process={os.getpid()}, forked from={owner}",
            "start processes with multiprocessing's 'spawn' method, as Ray does",
        )


@functools.lru_cache(maxsize=256)
def _open(scheme: str, bucket: str, retries: bool, environment: tuple[tuple[str, str], ...]) -> Any:
    """Opens a client; `environment` makes sure that changed variables open another one."""
    from obstore.exceptions import BaseError

    timeout = read_timeout()
    options: Any = {
        "connect_timeout": timedelta(seconds=min(CONNECT_TIMEOUT_S, timeout)),
        "read_timeout": timedelta(seconds=min(SILENCE_TIMEOUT_S, timeout)),
        "timeout": TRANSFER_TIMEOUT,
        "user_agent": "glassbox",
    }
    retry_config = {
        "max_retries": CLIENT_RETRIES if retries else 0,
        "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=5), "base": 2},
        "retry_timeout": timedelta(seconds=min(30.0, timeout)),
    }
    try:
        return _OPENERS[scheme](bucket, options, retry_config)
    except (BaseError, ValueError) as error:
        reason = str(error).split("\n", 1)[0][:200]
        raise AccessDeniedError(
            f"the account and the credentials for {Uri(scheme, bucket)} in the environment",
            f"response={reason}",
            "set the variables of this store",
        ) from None


def _open_s3(bucket: str, options: Any, retry_config: Any) -> Any:
    from obstore.store import S3Store

    provider, profile = find_aws_profile()
    config: Any = {}
    variables = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    endpoint = next((os.environ[name] for name in variables if os.environ.get(name)), None)
    if endpoint is None and "endpoint_url" in profile:
        endpoint = profile["endpoint_url"]
    if endpoint is not None:
        config["endpoint"] = endpoint
        options["allow_http"] = endpoint.startswith("http://")
    if "region" in profile and not os.environ.get("AWS_REGION") and not os.environ.get("AWS_DEFAULT_REGION"):
        config["region"] = profile["region"]
    return S3Store(
        bucket, config=config, client_options=options, retry_config=retry_config, credential_provider=provider
    )


def _open_gcs(bucket: str, options: Any, retry_config: Any) -> Any:
    from obstore.store import GCSStore

    emulator = os.environ.get("STORAGE_EMULATOR_HOST")
    if emulator:
        address = emulator if "://" in emulator else f"http://{emulator}"
        options["allow_http"] = address.startswith("http://")
        # An unsigned client would still ask for a token before it writes; this account has none to ask for.
        account = {"gcs_base_url": address, "disable_oauth": True, "client_email": "", "private_key": ""}
        config: Any = {"service_account_key": json.dumps(account | {"private_key_id": ""})}
        return GCSStore(bucket, config=config, client_options=options, retry_config=retry_config)
    provider = find_google_provider()
    return GCSStore(bucket, client_options=options, retry_config=retry_config, credential_provider=provider)


def _open_azure(bucket: str, options: Any, retry_config: Any) -> Any:
    from obstore.store import AzureStore

    config: Any = read_azure_connection()
    endpoint = config.get("endpoint") or os.environ.get("AZURE_STORAGE_ENDPOINT", "")
    is_emulator = os.environ.get("AZURE_STORAGE_USE_EMULATOR", "").lower() in ("1", "true")
    options["allow_http"] = is_emulator or endpoint.startswith("http://")
    return AzureStore(bucket, config=config, client_options=options, retry_config=retry_config)


def _open_http(bucket: str, options: Any, retry_config: Any) -> Any:
    from obstore.store import HTTPStore

    options["allow_http"] = True
    return HTTPStore(f"http://{bucket}", client_options=options, retry_config=retry_config)


def _open_https(bucket: str, options: Any, retry_config: Any) -> Any:
    from obstore.store import HTTPStore

    return HTTPStore(f"https://{bucket}", client_options=options, retry_config=retry_config)


_OPENERS = {"s3": _open_s3, "gs": _open_gcs, "az": _open_azure, "http": _open_http, "https": _open_https}

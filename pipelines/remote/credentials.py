"""Credentials that the client does not find: AWS profiles, federated Google identities, Azure strings."""

from __future__ import annotations

import configparser
import importlib.util
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError

# A profile's file is read again after this time, since tools renew session tokens in it.
_PROFILE_LIFETIME = timedelta(minutes=5)
# A profile with one of these obtains its keys elsewhere; boto3 knows how.
_INDIRECT = (
    "role_arn",
    "sso_session",
    "sso_start_url",
    "sso_account_id",
    "credential_process",
    "credential_source",
)


class AwsProfile:
    """Keys of a profile in `~/.aws/credentials` or `~/.aws/config`; called by the client when it needs them.

    Args:
        name: Profile, such as "default".
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self) -> dict[str, Any]:
        """Returns the keys as they are in the file now.

        Raises:
            ConfigError: The profile has gone from the file.
        """
        options = read_aws_profile(self.name)
        if "aws_access_key_id" not in options or "aws_secret_access_key" not in options:
            raise ConfigError(
                f"keys in the AWS profile {self.name!r}",
                "aws_access_key_id=missing",
                "add them, or set AWS_PROFILE",
            )
        return {
            "access_key_id": options["aws_access_key_id"],
            "secret_access_key": options["aws_secret_access_key"],
            "token": options.get("aws_session_token"),
            "expires_at": datetime.now(UTC) + _PROFILE_LIFETIME,
        }


def read_aws_profile(name: str) -> dict[str, str]:
    """Returns all options of an AWS profile; the credentials file takes precedence over the config file."""
    options: dict[str, str] = {}
    home = Path.home() / ".aws"
    config_section = name if name == "default" else f"profile {name}"
    for path, section in (
        (Path(os.environ.get("AWS_CONFIG_FILE", home / "config")), config_section),
        (Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", home / "credentials")), name),
    ):
        parser = configparser.RawConfigParser(strict=False)
        try:
            parser.read(path.expanduser(), encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError):
            # The parser's message would quote a line of the file.
            raise ConfigError("a file of AWS profiles", f"file={path}", "correct its syntax") from None
        if parser.has_section(section):
            options.update(parser.items(section))
    return options


def find_aws_profile() -> tuple[Any, dict[str, str]]:
    """Returns a provider of the profile's keys and the profile's options, or None and its options.

    Keys and web identities in the environment take precedence, as in the AWS command line.

    Raises:
        ConfigError: `AWS_PROFILE` names an unknown profile, or one whose keys need boto3, which is missing.
    """
    chosen = os.environ.get("AWS_PROFILE")
    name = chosen or "default"
    options = read_aws_profile(name)
    in_environment = ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_SKIP_SIGNATURE")
    if any(os.environ.get(variable) for variable in in_environment):
        return None, options
    if chosen and not options:
        raise ConfigError("a profile in ~/.aws", f"AWS_PROFILE={chosen}", "correct AWS_PROFILE, or unset it")
    if "aws_access_key_id" in options and "role_arn" not in options:
        return AwsProfile(name), options
    indirect = [option for option in _INDIRECT if option in options]
    if not indirect:
        return None, options
    if importlib.util.find_spec("boto3") is None:
        raise ConfigError(
            f"keys in the AWS profile {name!r}, or boto3 to obtain them",
            f"profile with {indirect[0]}, boto3=missing",
            "run `pip install boto3`, or export keys with `aws configure export-credentials --format env`",
        )
    from obstore.auth.boto3 import Boto3CredentialProvider

    return Boto3CredentialProvider(), options


def find_google_provider() -> Any:
    """Returns google-auth's provider for a federated identity, else None: the client reads the other kinds.

    Raises:
        ConfigError: The identity is federated and google-auth is missing.
    """
    text = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    path = Path(text) if text else Path.home() / ".config/gcloud/application_default_credentials.json"
    try:
        kind = json.loads(path.read_bytes()).get("type")
    except (OSError, ValueError, AttributeError):
        return None
    if kind in ("service_account", "authorized_user"):
        return None
    if importlib.util.find_spec("google.auth") is None:
        raise ConfigError(
            "google-auth for a federated identity",
            f"type={kind}, google-auth=missing",
            "run `pip install google-auth`",
        )
    from obstore.auth.google import GoogleCredentialProvider

    return GoogleCredentialProvider()


def read_azure_connection() -> dict[str, str]:
    """Returns the client's options in `AZURE_STORAGE_CONNECTION_STRING`; empty if it is not set."""
    names = {
        "AccountName": "account_name",
        "AccountKey": "account_key",
        "SharedAccessSignature": "sas_key",
        "BlobEndpoint": "endpoint",
    }
    options = {}
    for part in os.environ.get("AZURE_STORAGE_CONNECTION_STRING", "").split(";"):
        name, _, value = part.partition("=")
        if name.strip() in names and value:
            options[names[name.strip()]] = value
    return options

"""Credentials of the standard mechanisms, from files and variables, without a server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.errors import ConfigError
from pipelines.remote.credentials import find_aws_profile, find_google_provider, read_azure_connection


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with two AWS profiles, and no variables of any store."""
    import os

    for name in list(os.environ):
        if name.startswith(("AWS_", "GOOGLE_", "AZURE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".aws"
    folder.mkdir()
    (folder / "credentials").write_text(
        "[default]\naws_access_key_id = d\naws_secret_access_key = ds\n"
        "[team]\naws_access_key_id = t\naws_secret_access_key = ts%x\naws_session_token = tt\n"
    )
    (folder / "config").write_text(
        "[profile team]\nregion = eu-west-1\nendpoint_url = http://store:9000\n"
        "[profile sso]\nsso_session = corp\n"
    )
    return tmp_path


def test_the_default_profile_is_used_without_variables() -> None:
    provider, _ = find_aws_profile()
    assert provider()["access_key_id"] == "d"


def test_a_named_profile_has_keys_region_and_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "team")
    provider, options = find_aws_profile()
    keys = provider()
    assert (keys["access_key_id"], keys["secret_access_key"], keys["token"]) == ("t", "ts%x", "tt")
    assert (options["region"], options["endpoint_url"]) == ("eu-west-1", "http://store:9000")


def test_renewed_keys_of_a_profile_are_read_again(home: Path) -> None:
    provider, _ = find_aws_profile()
    file = home / ".aws/credentials"
    file.write_text(file.read_text().replace("= d\n", "= renewed\n"))
    assert provider()["access_key_id"] == "renewed"


@pytest.mark.parametrize(
    "variable", ["AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_SKIP_SIGNATURE"]
)
def test_variables_take_precedence_over_profiles(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "x")
    assert find_aws_profile()[0] is None


def test_an_unknown_profile_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "other")
    with pytest.raises(ConfigError, match="AWS_PROFILE=other"):
        find_aws_profile()


def test_a_profile_of_single_sign_on_needs_boto3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "sso")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="sso_session, boto3=missing"):
        find_aws_profile()


def test_a_damaged_file_of_profiles_is_not_quoted(home: Path) -> None:
    (home / ".aws/credentials").write_text("[default\naws_secret_access_key = hunter2\n")
    with pytest.raises(ConfigError) as caught:
        find_aws_profile()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(("kind", "is_ours"), [("service_account", False), ("external_account", True)])
def test_federated_google_identities_need_google_auth(
    kind: str, is_ours: bool, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = home / "google.json"
    file.write_text(json.dumps({"type": kind}))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    if not is_ours:
        assert find_google_provider() is None
        return
    with pytest.raises(ConfigError, match="google-auth"):
        find_google_provider()


def test_azure_connection_strings_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "AZURE_STORAGE_CONNECTION_STRING",
        "DefaultEndpointsProtocol=https;AccountName=team;AccountKey=a2V5PT0=;EndpointSuffix=core.windows.net",
    )
    assert read_azure_connection() == {"account_name": "team", "account_key": "a2V5PT0="}

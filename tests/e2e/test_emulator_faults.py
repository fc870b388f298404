"""Faults in front of emulators of Google Cloud Storage and Azure: the rows of local disk, or one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from emulators import EMULATORS
from store_faults import (
    FINAL_FAULTS,
    PASSING_FAULTS,
    REFUSALS,
    choose_small_cache,
    compute_digest,
    read_until_refused,
    use_empty_cache,
    write_set,
)
from stores import FaultProxy, run_proxy

from pipelines.remote import store
from pipelines.remote.uri import Uri, parse_location

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ENDPOINTS = ("STORAGE_EMULATOR_HOST", "AZURITE_BLOB_STORAGE_URL")  # variables with the emulator's address


@pytest.fixture(scope="module")
def local_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("sets") / "set")


@pytest.fixture(scope="module")
def expected(local_set: Path) -> str:
    return compute_digest(local_set)


@pytest.fixture(scope="module", params=EMULATORS)
def emulator(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Uri, dict[str, str]]]:
    """An empty bucket of an emulator, and the environment of the client."""
    folder = tmp_path_factory.mktemp(request.param)
    with EMULATORS[request.param](folder, "glassbox-test") as (url, environment):
        location = parse_location(url)
        assert isinstance(location, Uri)
        yield location, environment


@pytest.fixture
def proxy(emulator: tuple[Uri, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy in front of the emulator, which the client connects to."""
    _, environment = emulator
    (variable,) = environment.keys() & set(ENDPOINTS)
    with run_proxy(urlsplit(environment[variable]).port or 0) as running:
        for name, value in environment.items():
            monkeypatch.setenv(name, running.endpoint if name == variable else value)
        yield running


@pytest.fixture
def remote_set(
    local_set: Path,
    emulator: tuple[Uri, dict[str, str]],
    proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Uri:
    """The set in the bucket; the cache is empty, and pauses between retries are short."""
    location = emulator[0] / "set"
    for path in local_set.iterdir():
        store.write_bytes(location / path.name, path.read_bytes())
    use_empty_cache(monkeypatch, tmp_path / "cache")
    return location


@pytest.mark.parametrize("fault", PASSING_FAULTS)
def test_rows_are_those_on_local_disk(
    fault: str, remote_set: Uri, local_set: Path, proxy: FaultProxy, expected: str
) -> None:
    PASSING_FAULTS[fault](proxy)
    assert compute_digest(str(remote_set), choose_small_cache(local_set)) == expected
    assert proxy.latency or any(request.fault for request in proxy.requests)


@pytest.mark.parametrize("fault", [*FINAL_FAULTS, *REFUSALS["gs"]])
def test_what_does_not_pass_is_one_sentence_that_names_the_object(
    fault: str, remote_set: Uri, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_until_refused(fault, proxy, remote_set, monkeypatch)

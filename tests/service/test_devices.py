"""Devices of a process: logical CPUs, memory of GPUs, hidden GPUs, the driver, determinism."""

from __future__ import annotations

import pytest

from pipelines.errors import ConfigError
from service.devices import LOGICAL_DEVICES, read_logical_devices


def test_no_number_of_logical_devices_is_no_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LOGICAL_DEVICES, raising=False)
    assert read_logical_devices() is None
    monkeypatch.setenv(LOGICAL_DEVICES, " ")
    assert read_logical_devices() is None


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "²"])
def test_a_bad_number_of_logical_devices_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(LOGICAL_DEVICES, value)
    with pytest.raises(ConfigError, match=f"{LOGICAL_DEVICES}={value}"):
        read_logical_devices()

"""Output files in a store: uploaded when complete, with their companions, and kept if the store has gone."""

from __future__ import annotations

from pathlib import Path

import pytest
from stores import Bucket, FaultProxy

from pipelines.errors import ConfigError, DataError
from pipelines.remote.errors import AccessDeniedError, StoreUnavailableError
from service.inference.outputs import open_output

REJECTED = ".rejected.jsonl"
pytestmark = pytest.mark.e2e


def write(out: str, text: str, rejected: str = "") -> None:
    with open_output(out, ".csv", companions=(REJECTED,)) as output:
        assert str(output.locate_companion(REJECTED)) == out.replace(".csv", REJECTED)
        output.path.write_text(text)
        if rejected:
            output.path.with_suffix(REJECTED).write_text(rejected)


def test_a_table_and_its_companion_are_uploaded(bucket: Bucket) -> None:
    write(f"{bucket}/tables/a.csv", "first", "reasons")
    assert bucket.get("tables/a.csv") == b"first"
    assert bucket.get("tables/a.rejected.jsonl") == b"reasons"
    write(f"{bucket}/tables/a.csv", "second")
    assert bucket.get("tables/a.csv") == b"second"
    assert bucket.list_keys("tables") == ["tables/a.csv"], "reasons of an earlier table have gone"


def test_a_failure_uploads_its_reasons_and_keeps_the_previous_table(bucket: Bucket) -> None:
    write(f"{bucket}/a.csv", "first")
    with (  # noqa: PT012 (the block is the work that fails)
        pytest.raises(DataError, match="images"),
        open_output(f"{bucket}/a.csv", ".csv", companions=(REJECTED,)) as output,
    ):
        output.path.write_text("half a tab")
        output.path.with_suffix(REJECTED).write_text("reasons")
        raise DataError("images", "none", "add some")
    assert bucket.get("a.csv") == b"first"
    assert bucket.get("a.rejected.jsonl") == b"reasons"
    assert not output.path.parent.exists()


def test_the_result_is_kept_if_the_store_has_gone(
    bucket: Bucket, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (  # noqa: PT012 (the failure comes at the end of the block)
        pytest.raises(StoreUnavailableError, match=rf"{bucket}/a\.csv to respond") as caught,
        open_output(f"{bucket}/a.csv", ".csv") as output,
    ):
        output.path.write_text("hours of work")
        monkeypatch.setenv("GLASSBOX_STORE_TIMEOUT", "0.3")
        proxy.go_down()
    assert f"upload the result, which is in {output.path}" in str(caught.value)
    assert output.path.read_text() == "hours of work"


@pytest.mark.usefixtures("s3_server")
def test_what_cannot_be_written_is_refused_before_the_work(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"ends in \.csv"), open_output(f"{bucket}/a.txt", ".csv"):
        pass
    with pytest.raises(ConfigError, match="https://"), open_output("https://host/a.csv", ".csv"):
        pass
    with pytest.raises(ConfigError, match="does not exist"), open_output(tmp_path / "no/a.csv", ".csv"):
        pass
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")
    with pytest.raises(AccessDeniedError, match=f"{bucket}/a"), open_output(f"{bucket}/a.csv", ".csv"):
        pytest.fail("the work has started")

"""Sources and outputs that fail: one sentence that names the image or the path, and no finished work lost."""

from __future__ import annotations

import subprocess

import pytest
from list_source import ListSource, encode_noise, make_examples, register_by_value, snapshot

from pipelines.errors import ConfigError, DataError
from pipelines.records import Example, Rejected
from pipelines.shards import task
from pipelines.shards.build import build_shards
from pipelines.shards.output import FolderOutput
from pipelines.shards.plan import plan_shards
from pipelines.spec import ShardSpec


@pytest.fixture(scope="module", autouse=True)
def _cluster(ray_cluster):
    register_by_value(__name__)


@pytest.fixture
def disk(tmp_path):
    """A file system of 1 MB, and a function that changes its mount options."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> None:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "none", folder], check=True, capture_output=True
        )

    try:
        mount("size=1m")
    except (subprocess.CalledProcessError, FileNotFoundError):
        pytest.skip("needs the right to mount")
    yield folder, mount
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("content", ["manifest.json", "letter.txt", ".hidden"])
def test_an_output_with_content_is_refused_and_unchanged(tmp_path, content):
    (tmp_path / content).write_text("mine")
    with pytest.raises(ConfigError, match="does not exist yet"):
        build_shards(ListSource({"train": make_examples(4)}), tmp_path, ShardSpec())
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_an_output_that_is_a_file_or_below_one_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(ConfigError, match="out="):
            build_shards(ListSource({"train": make_examples(4)}), out, ShardSpec())
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("creates_output", [True, False])
@pytest.mark.parametrize(
    ("items", "found"),
    [
        (
            [Rejected("a.txt", "bad suffix"), Example(b"", 1, "b")],
            "ant=0, bee=0; rejected=2 (a.txt: bad suffix; b: empty file)",
        ),
        ([item for item in make_examples(8) if item.label], "ant=0, bee=4; rejected=0"),
    ],
)
@pytest.mark.parametrize("file_format", ["arrow", "tfrecord"])
def test_too_few_usable_images_leave_nothing(tmp_path, items, found, creates_output, file_format):
    out = tmp_path / "set"
    if not creates_output:
        out.mkdir()
    with pytest.raises(DataError) as caught:
        build_shards(
            ListSource({"train": items}), out, ShardSpec(shard_rows=2, validation=0, format=file_format)
        )
    assert found in str(caught.value)
    assert out.exists() is not creates_output
    assert creates_output or not any(out.iterdir())


def test_a_source_without_images_is_refused(tmp_path):
    with pytest.raises(DataError, match="at least one image"):
        build_shards(ListSource({"train": []}), tmp_path / "set", ShardSpec())
    assert not (tmp_path / "set").exists()


def raise_at_image_2(error: Exception):
    def fail(index):
        if index == 2:
            raise error

    return fail


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (DataError("a", "b=c", "d"), "Expected a. Received: b=c (image 2 of train). Fix: d."),
        (ZeroDivisionError("by zero"), "Received: image 2 of train: ZeroDivisionError: by zero. Fix:"),
        (
            OSError(28, "No space left on device", "in.jpg"),
            "image 2 of train: OSError: [Errno 28] No space left on device: 'in.jpg'",
        ),
    ],
)
def test_an_error_in_a_worker_names_the_image(tmp_path, error, message):
    with pytest.raises(DataError) as caught:
        build_shards(
            ListSource({"train": make_examples(4)}, before_read=raise_at_image_2(error)),
            tmp_path / "set",
            ShardSpec(validation=0),
        )
    assert type(caught.value) is DataError
    assert message in str(caught.value)
    assert not (tmp_path / "set").exists()


def test_shards_built_before_an_error_are_kept(tmp_path):
    source = ListSource({"train": make_examples(4)}, before_read=raise_at_image_2(DataError("a", "b=c", "d")))
    with pytest.raises(DataError):
        build_shards(source, tmp_path / "set", ShardSpec(shard_rows=1), workers=1)
    progress = []
    build_shards(
        ListSource(source.splits),
        tmp_path / "set",
        ShardSpec(shard_rows=1),
        lambda *done: progress.append(done),
    )
    assert progress[0] == (2, 4)


def test_an_image_that_the_decoder_cannot_handle_is_named(tmp_path, monkeypatch):
    def fail(image, spec):
        raise MemoryError("no memory")

    monkeypatch.setattr(task, "prepare_image", fail)
    source = ListSource({"train": make_examples(2)})
    with pytest.raises(DataError, match=r"id=0.png: MemoryError: no memory"):
        list(task.prepare_examples(source, "train", 0, 2, ShardSpec()))


def test_a_source_that_ends_too_early_is_an_error(tmp_path):
    class Short(ListSource):
        def read(self, split, start, stop):
            return super().read(split, start, min(stop, 3))

    with pytest.raises(
        DataError, match=r"Expected 4 images of train\. Received: source=list:test: 3 after number 0"
    ):
        build_shards(
            Short({"train": make_examples(4)}), tmp_path / "set", ShardSpec(shard_rows=4, validation=0)
        )


def test_a_full_disk_keeps_finished_shards(tmp_path, disk):
    folder, mount = disk
    items = [Example(encode_noise(index, 256), index % 2, str(index)) for index in range(24)]  # 64 KiB each
    source = ListSource({"train": items})
    spec = ShardSpec(shard_rows=2, validation=0)
    with pytest.raises(ConfigError, match=r"out=.*No space left on device.*free space"):
        build_shards(source, folder / "set", spec)
    assert not (folder / "set/manifest.json").exists()
    finished = [path.name.removesuffix(".done") for path in folder.rglob("*.done")]
    kept = {name: (folder / "set" / name).stat().st_ino for name in finished}
    assert kept
    assert not list(folder.rglob(".tmp-*"))
    mount("remount,size=8m")
    build_shards(source, folder / "set", spec)
    build_shards(source, tmp_path / "whole", spec)
    assert snapshot(folder / "set") == snapshot(tmp_path / "whole")
    assert {name: (folder / "set" / name).stat().st_ino for name in kept} == kept


def test_a_disk_that_is_full_at_the_commit_is_reported(tmp_path, disk):
    folder, mount = disk
    source = ListSource({"train": make_examples(4)})
    filler = folder / "filler"

    def fill(done, total):
        if done == total:
            filler.write_bytes(b"x" * (500 << 10))
            mount(f"remount,size={sum(path.stat().st_blocks for path in folder.rglob('*')) * 512}")

    with pytest.raises(ConfigError, match="No space left on device"):
        build_shards(source, folder / "set", ShardSpec(), fill)
    assert not (folder / "set/manifest.json").exists()
    filler.unlink()
    progress = []
    build_shards(source, folder / "set", ShardSpec(), lambda *done: progress.append(done))
    assert progress == [(4, 4)]


def test_an_output_that_cannot_be_written_is_reported(disk):
    folder, mount = disk
    (folder / "empty").mkdir()
    mount("remount,ro")
    for out in (folder / "set", folder / "empty"):
        with pytest.raises(ConfigError, match=r"Read-only file system.*change permissions"):
            build_shards(ListSource({"train": make_examples(4)}), out, ShardSpec())


def test_an_output_that_a_worker_does_not_see_is_reported(tmp_path):
    source = ListSource({"train": make_examples(4)})
    (planned, *_) = plan_shards(source.counts(), ShardSpec())
    with pytest.raises(ConfigError, match=f"every worker sees. Received: {tmp_path}"):
        task.build_shard(source, planned, ShardSpec(), FolderOutput(tmp_path, tmp_path / ".building/0"))

"""Builds that end early, for any reason, and several builders of one shard set."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal

import pytest
from list_source import ListSource, make_examples, register_by_value, snapshot

from pipelines.errors import ConfigError, DataError
from pipelines.records import Example, Rejected
from pipelines.shards.build import build_shards
from pipelines.shards.build_directory import lock_build_directory
from pipelines.shards.output import WORK_FOLDER, FolderOutput
from pipelines.shards.plan import plan_shards
from pipelines.shards.task import build_shard
from pipelines.spec import ShardSpec


@pytest.fixture(scope="module", autouse=True)
def _cluster(ray_cluster):
    register_by_value(__name__)


class EndedError(Exception):
    """Raised by a progress callback to interrupt a build."""


def stop_after(images: int):
    def stop(done, total):
        if done >= images:
            raise EndedError

    return stop


def list_finished(out) -> set[str]:
    return {path.name.removesuffix(".done") for path in (out / WORK_FOLDER).glob("*/*.done")}


@pytest.mark.parametrize("file_format", ["arrow", "tfrecord"])
def test_an_interrupted_build_resumes_and_ends_with_the_same_bytes(tmp_path, file_format):
    items = make_examples(12)
    items[0] = Rejected("bad ü", "no image")
    source = ListSource({"train": items})
    spec = ShardSpec(shard_rows=2, format=file_format)
    out = tmp_path / "set"
    build_shards(source, tmp_path / "whole", spec)
    with pytest.raises(EndedError):
        build_shards(source, out, spec, stop_after(8))
    kept = sorted(list_finished(out))
    assert len(kept) >= 4
    assert not (out / "manifest.json").exists()
    before = (out / kept[0]).stat()
    (next((out / WORK_FOLDER).glob("*/")) / ".tmp-1234-train-00000-of-00005.arrow").write_bytes(b"half")
    # One finished shard is lost, one truncated, and the index or the marker of one damaged.
    (out / kept[1]).unlink()
    (out / kept[2]).write_bytes(b"cut")
    if file_format == "tfrecord":
        damaged = out / f"{os.path.splitext(kept[3])[0]}.index.arrow"
    else:
        damaged = next((out / WORK_FOLDER).glob(f"*/{kept[3]}.done"))
    damaged.write_bytes(b"\xff")
    progress = []

    def watch(done, total):
        progress.append(done)
        assert not list(out.rglob(".tmp-1234*"))  # the space is free before more is needed

    build_shards(source, out, spec, watch)
    assert progress[0] == 2 * (len(kept) - 3)
    assert ((out / kept[0]).stat().st_ino, (out / kept[0]).stat().st_mtime_ns) == (
        before.st_ino,
        before.st_mtime_ns,
    )
    assert snapshot(out) == snapshot(tmp_path / "whole")


def test_a_build_killed_before_it_removed_its_work_folder_is_complete(tmp_path):
    source = ListSource({"train": make_examples(4)})
    spec = ShardSpec()
    out = tmp_path / "set"
    with pytest.raises(EndedError):
        build_shards(source, out, spec, stop_after(4))
    shutil.copytree(out / WORK_FOLDER, tmp_path / "work")
    manifest = build_shards(source, out, spec)
    expected = snapshot(out)
    shutil.copytree(tmp_path / "work", out / WORK_FOLDER)
    shutil.rmtree(next((out / WORK_FOLDER).glob("*/")))  # as if the removal had been interrupted
    with pytest.raises(ConfigError, match="does not exist yet"):
        build_shards(source, out, ShardSpec(store_size=5))
    assert build_shards(source, out, spec, stop_after(0)) == manifest
    assert snapshot(out) == expected


def test_a_complete_set_is_not_changed(tmp_path):
    source = ListSource({"train": make_examples(4)})
    out = tmp_path / "set"
    build_shards(source, out, ShardSpec())
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (out, *out.iterdir())}
    with pytest.raises(ConfigError, match="does not exist yet"):
        build_shards(source, out, ShardSpec())
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (out, *out.iterdir())} == before


def test_an_unfinished_build_with_other_arguments_is_kept(tmp_path):
    source = ListSource({"train": make_examples(4)})
    out = tmp_path / "set"
    with pytest.raises(EndedError):
        build_shards(source, out, ShardSpec(), stop_after(0))
    with pytest.raises(ConfigError, match=r"unfinished build.*differs: the options"):
        build_shards(source, out, ShardSpec(store_size=5))
    with pytest.raises(ConfigError, match=r"unfinished build.*differs: the content of the source"):
        build_shards(ListSource({"train": make_examples(5)}), out, ShardSpec())
    build_shards(source, out, ShardSpec())


def test_a_killed_worker_is_replaced(tmp_path):
    def die_once(index):
        if index == 5 and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    spec = ShardSpec(shard_rows=2)
    build_shards(ListSource({"train": make_examples(12)}), tmp_path / "whole", spec)
    build_shards(ListSource({"train": make_examples(12)}, before_read=die_once), tmp_path / "set", spec)
    assert (tmp_path / "died").exists()
    assert snapshot(tmp_path / "set") == snapshot(tmp_path / "whole")


@pytest.mark.slow  # Ray waits between its retries
def test_workers_that_always_die_name_the_shard_and_keep_the_others(tmp_path):
    def die(index):
        if index == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(ConfigError, match=r"train-00001-of-00003.arrow, images 2 to 3 of train.*Fix"):
        build_shards(
            ListSource({"train": make_examples(6)}, before_read=die),
            tmp_path / "set",
            ShardSpec(shard_rows=2, validation=0),
            workers=1,
        )
    assert list_finished(tmp_path / "set") == {"train-00000-of-00003.arrow"}
    progress = []
    build_shards(
        ListSource({"train": make_examples(6)}),
        tmp_path / "set",
        ShardSpec(shard_rows=2, validation=0),
        lambda *d: progress.append(d),
    )
    assert progress[0] == (2, 6)


def test_a_second_builder_is_refused_at_once(tmp_path):
    source = ListSource({"train": make_examples(4)})
    out = tmp_path / "set"
    refusals = []

    def second(done, total):
        with pytest.raises(ConfigError, match="another builder is at work") as caught:
            build_shards(source, out, ShardSpec())
        refusals.append(caught)

    build_shards(source, out, ShardSpec(), second)
    assert len(refusals) > 1
    build_shards(source, tmp_path / "whole", ShardSpec())
    assert snapshot(out) == snapshot(tmp_path / "whole")


def hold_lock(out, is_locked):
    with lock_build_directory(out, "0" * 64, {}):
        is_locked.set()
        signal.pause()


def test_the_lock_ends_with_the_process(tmp_path):
    is_locked = multiprocessing.get_context("spawn").Event()
    holder = multiprocessing.get_context("spawn").Process(
        target=hold_lock, args=(tmp_path / "set", is_locked)
    )
    holder.start()
    assert is_locked.wait(600)
    with (
        pytest.raises(ConfigError, match="another builder"),
        lock_build_directory(tmp_path / "set", "0" * 64, {}),
    ):
        pass
    holder.kill()
    holder.join()
    with lock_build_directory(tmp_path / "set", "0" * 64, {}):
        pass


def plan_in_work_folder(tmp_path, source):
    out = tmp_path / "set"
    work = tmp_path / "set" / WORK_FOLDER / "0"
    work.mkdir(parents=True)
    return plan_shards(source.counts(), ShardSpec(validation=0)), out, work


@pytest.mark.parametrize("image", [0, 2, 3])
def test_a_worker_that_outlives_its_build_leaves_nothing(tmp_path, image):
    def remove_work_folder(index):
        if index == image:
            shutil.rmtree(tmp_path / "set" / WORK_FOLDER)

    source = ListSource({"train": make_examples(4)}, before_read=remove_work_folder)
    (planned,), out, work = plan_in_work_folder(tmp_path, source)
    with pytest.raises(ConfigError, match="can be written"):
        build_shard(source, planned, ShardSpec(), FolderOutput(out, work))
    with pytest.raises(ConfigError, match="every worker sees"):
        build_shard(source, planned, ShardSpec(), FolderOutput(out, work))
    assert list(out.iterdir()) == []


def test_removing_the_work_folder_is_repeated_where_it_fails(tmp_path, monkeypatch):
    remove = shutil.rmtree
    attempts = []

    def fail_once(path, **options):
        if attempts:
            remove(path, **options)
        attempts.append(path)

    monkeypatch.setattr(shutil, "rmtree", fail_once)
    with lock_build_directory(tmp_path / "set", "0" * 64, {}) as directory:
        (tmp_path / "set/manifest.json").touch()
        directory.is_over = True
    assert len(attempts) == 2
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["manifest.json"]


def test_builds_of_one_directory_have_work_folders_of_their_own(tmp_path):
    with lock_build_directory(tmp_path / "set", "a" * 64, {}) as first:
        pass
    shutil.rmtree(tmp_path / "set")
    with lock_build_directory(tmp_path / "set", "b" * 64, {}) as second:
        assert second.work.is_dir()
        assert not first.work.exists()


def test_a_source_that_changes_during_the_build_is_refused(tmp_path):
    source = ListSource({"train": make_examples(4)})
    out = tmp_path / "set"
    with pytest.raises(DataError, match="changed since the build began"):
        build_shards(source, out, ShardSpec(), reopen=lambda: ListSource({"train": make_examples(5)}))
    assert not out.exists()
    build_shards(source, out, ShardSpec(), reopen=lambda: ListSource({"train": make_examples(4)}))


def test_a_source_that_can_check_itself_is_not_opened_again(tmp_path):
    class CheckedSource(ListSource):
        def labels(self, split):
            return [item.label for item in self.splits[split]]

        def check_unchanged(self):
            (tmp_path / "checked").touch()

    def fail():
        raise AssertionError("opened again")

    build_shards(CheckedSource({"train": make_examples(4)}), tmp_path / "set", ShardSpec(), reopen=fail)
    assert (tmp_path / "checked").exists()


def test_images_rejected_by_an_earlier_start_are_listed(tmp_path):
    items = [
        Rejected(f"{i}", "no") if i % 3 == 0 else Example(e.image, e.label, e.id)
        for i, e in enumerate(make_examples(12))
    ]
    source = ListSource({"train": items})
    out = tmp_path / "set"
    with pytest.raises(EndedError):
        build_shards(source, out, ShardSpec(shard_rows=2, validation=0), stop_after(4))
    assert build_shards(source, out, ShardSpec(shard_rows=2, validation=0)).rejected == 4
    lines = (out / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["0", "3", "6", "9"]

"""Builds that ended early, by whatever cause, and builders that meet."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal

import pytest
from list_source import ListSource, by_value, examples, snapshot

from pipelines.errors import ConfigError, DataError
from pipelines.records import Example, Rejected
from pipelines.shards.build import build_shards
from pipelines.shards.build_directory import WORK_FOLDER, lock_build_directory
from pipelines.shards.plan import plan_shards
from pipelines.shards.task import build_shard
from pipelines.spec import ShardSpec


@pytest.fixture(scope="module", autouse=True)
def _cluster(ray_cluster):
    by_value(__name__)


class EndedError(Exception):
    """Stands for whatever ends a build from outside."""


def stop_after(images: int):
    def stop(done, total):
        if done >= images:
            raise EndedError

    return stop


def finished(out) -> set[str]:
    return {path.name.removesuffix(".done") for path in (out / WORK_FOLDER).glob("*/*.done")}


@pytest.mark.parametrize("file_format", ["arrow", "tfrecord"])
def test_an_interrupted_build_goes_on_and_ends_with_the_same_bytes(tmp_path, file_format):
    items = examples(12)
    items[0] = Rejected("bad ü", "no image")
    source, spec, out = (
        ListSource({"train": items}),
        ShardSpec(shard_rows=2, format=file_format),
        tmp_path / "set",
    )
    build_shards(source, tmp_path / "whole", spec)
    with pytest.raises(EndedError):
        build_shards(source, out, spec, stop_after(8))
    kept = sorted(finished(out))
    assert len(kept) >= 4
    assert not (out / "manifest.json").exists()
    before = (out / kept[0]).stat()
    (next((out / WORK_FOLDER).glob("*/")) / ".tmp-1234-train-00000-of-00005.arrow").write_bytes(b"half")
    (
        out / kept[1]
    ).unlink()  # one finished shard is lost, one cut short, the marker or the index of one damaged
    (out / kept[2]).write_bytes(b"cut")
    third = (
        out / f"{os.path.splitext(kept[3])[0]}.index.arrow"
        if file_format == "tfrecord"
        else next((out / WORK_FOLDER).glob(f"*/{kept[3]}.done"))
    )
    third.write_bytes(b"\xff")
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


def test_a_build_killed_between_manifest_and_cleaning_up_is_finished(tmp_path):
    source, spec, out = ListSource({"train": examples(4)}), ShardSpec(), tmp_path / "set"
    with pytest.raises(EndedError):
        build_shards(source, out, spec, stop_after(4))
    shutil.copytree(out / WORK_FOLDER, tmp_path / "room")
    manifest = build_shards(source, out, spec)
    expected = snapshot(out)
    shutil.copytree(tmp_path / "room", out / WORK_FOLDER)
    shutil.rmtree(next((out / WORK_FOLDER).glob("*/")))  # as far as cleaning up had come
    with pytest.raises(ConfigError, match="does not exist yet"):
        build_shards(source, out, ShardSpec(store_size=5))
    assert build_shards(source, out, spec, stop_after(0)) == manifest
    assert snapshot(out) == expected


def test_a_finished_set_is_no_more_touched(tmp_path):
    source, out = ListSource({"train": examples(4)}), tmp_path / "set"
    build_shards(source, out, ShardSpec())
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (out, *out.iterdir())}
    with pytest.raises(ConfigError, match="does not exist yet"):
        build_shards(source, out, ShardSpec())
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (out, *out.iterdir())} == before


def test_an_unfinished_build_of_something_else_is_left_alone(tmp_path):
    source, out = ListSource({"train": examples(4)}), tmp_path / "set"
    with pytest.raises(EndedError):
        build_shards(source, out, ShardSpec(), stop_after(0))
    with pytest.raises(ConfigError, match=r"unfinished build.*differs: the options"):
        build_shards(source, out, ShardSpec(store_size=5))
    with pytest.raises(ConfigError, match=r"unfinished build.*differs: the content of the source"):
        build_shards(ListSource({"train": examples(5)}), out, ShardSpec())
    build_shards(source, out, ShardSpec())


def test_a_worker_that_is_killed_costs_nothing(tmp_path):
    def die_once(index):
        if index == 5 and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    spec = ShardSpec(shard_rows=2)
    build_shards(ListSource({"train": examples(12)}), tmp_path / "whole", spec)
    build_shards(ListSource({"train": examples(12)}, meanwhile=die_once), tmp_path / "set", spec)
    assert (tmp_path / "died").exists()
    assert snapshot(tmp_path / "set") == snapshot(tmp_path / "whole")


@pytest.mark.slow  # Ray waits before it tries again
def test_workers_that_always_die_name_the_shard_and_lose_no_other(tmp_path):
    def die(index):
        if index == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(ConfigError, match=r"train-00001-of-00003.arrow, images 2 to 3 of train.*Fix"):
        build_shards(
            ListSource({"train": examples(6)}, meanwhile=die),
            tmp_path / "set",
            ShardSpec(shard_rows=2, validation=0),
            workers=1,
        )
    assert finished(tmp_path / "set") == {"train-00000-of-00003.arrow"}
    progress = []
    build_shards(
        ListSource({"train": examples(6)}),
        tmp_path / "set",
        ShardSpec(shard_rows=2, validation=0),
        lambda *d: progress.append(d),
    )
    assert progress[0] == (2, 6)


def test_the_second_builder_is_refused_at_once(tmp_path):
    source, out = ListSource({"train": examples(4)}), tmp_path / "set"
    refusals = []

    def second(done, total):
        with pytest.raises(ConfigError, match="another builder is at work") as caught:
            build_shards(source, out, ShardSpec())
        refusals.append(caught)

    build_shards(source, out, ShardSpec(), second)
    assert len(refusals) > 1
    build_shards(source, tmp_path / "whole", ShardSpec())
    assert snapshot(out) == snapshot(tmp_path / "whole")


def hold(out, claimed_now):
    with lock_build_directory(out, "0" * 64, {}):
        claimed_now.set()
        signal.pause()


def test_the_claim_ends_with_the_process(tmp_path):
    claimed_now = multiprocessing.get_context("spawn").Event()
    holder = multiprocessing.get_context("spawn").Process(target=hold, args=(tmp_path / "set", claimed_now))
    holder.start()
    assert claimed_now.wait(60)
    with pytest.raises(ConfigError, match="another builder"), lock_build_directory(tmp_path / "set", "0" * 64, {}):
        pass
    holder.kill()
    holder.join()
    with lock_build_directory(tmp_path / "set", "0" * 64, {}):
        pass


def plan_and_places(tmp_path, source):
    out, work = tmp_path / "set", tmp_path / "set" / WORK_FOLDER / "0"
    work.mkdir(parents=True)
    return plan_shards(source.counts(), ShardSpec(validation=0)), out, work


@pytest.mark.parametrize("image", [0, 2, 3])
def test_a_worker_that_outlives_its_build_leaves_nothing(tmp_path, image):
    def end(index):
        if index == image:
            shutil.rmtree(tmp_path / "set" / WORK_FOLDER)

    source = ListSource({"train": examples(4)}, meanwhile=end)
    (planned,), out, work = plan_and_places(tmp_path, source)
    with pytest.raises(ConfigError, match="can be written"):
        build_shard(source, planned, ShardSpec(), out, work)
    with pytest.raises(ConfigError, match="every worker sees"):
        build_shard(source, planned, ShardSpec(), out, work)
    assert list(out.iterdir()) == []


def test_a_file_that_comes_while_the_work_directory_is_removed_does_not_keep_it(tmp_path, monkeypatch):
    remove, rests = shutil.rmtree, []

    def fail_at_first(path, **options):
        if rests:
            remove(path, **options)
        rests.append(path)

    monkeypatch.setattr(shutil, "rmtree", fail_at_first)
    with lock_build_directory(tmp_path / "set", "0" * 64, {}) as workplace:
        (tmp_path / "set/manifest.json").touch()
        workplace.is_over = True
    assert len(rests) == 2
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["manifest.json"]


def test_a_worker_that_outlives_its_build_does_not_meet_another_build_at_the_same_place(tmp_path):
    with lock_build_directory(tmp_path / "set", "a" * 64, {}) as first:
        pass
    shutil.rmtree(tmp_path / "set")
    with lock_build_directory(tmp_path / "set", "b" * 64, {}) as second:
        assert second.work.is_dir()
        assert not first.work.exists()


def test_a_source_that_changes_while_it_is_read_makes_no_set(tmp_path):
    source, out = ListSource({"train": examples(4)}), tmp_path / "set"
    with pytest.raises(DataError, match="changed since the build began"):
        build_shards(source, out, ShardSpec(), reopen=lambda: ListSource({"train": examples(5)}))
    assert not out.exists()
    build_shards(source, out, ShardSpec(), reopen=lambda: ListSource({"train": examples(4)}))


def test_rejects_of_an_earlier_start_are_listed(tmp_path):
    items = [
        Rejected(f"{i}", "no") if i % 3 == 0 else Example(e.image, e.label, e.id)
        for i, e in enumerate(examples(12))
    ]
    source, out = ListSource({"train": items}), tmp_path / "set"
    with pytest.raises(EndedError):
        build_shards(source, out, ShardSpec(shard_rows=2, validation=0), stop_after(4))
    assert build_shards(source, out, ShardSpec(shard_rows=2, validation=0)).rejected == 4
    lines = (out / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["0", "3", "6", "9"]

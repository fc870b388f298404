"""The cache of decoded images: every tier gives the same batches, and `auto` chooses what fits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from shard_samples import write_shards as write_shard_set
from tiny_shards import solid, solids

from pipelines.errors import ConfigError, DataError
from pipelines.input.batches import Batches
from pipelines.input.cache import CacheBudget, DeviceImages, allocate_words, gather_images, view_images
from pipelines.input.memory import measure_available_gpu_memory, measure_available_ram
from pipelines.input.placement import allocate, copy_to_device
from pipelines.records import Record
from pipelines.spec import AugmentSpec, DataSpec

SCRIPT = Path(__file__).with_name("replicas_script.py")
SIZE = {"image_size": (2, 3), "channels": 1}
AUGMENT = AugmentSpec(rotation=30, brightness=0.1)
ROWS = 1000
BYTES = 6000  # of the decoded images of all rows
# Whether two replicas shard 60 bytes of images, by the bytes of RAM: each may take a quarter of them.
REPLICA_RAM = {10**6: False, 200: True}


@pytest.fixture
def directory(write_shards) -> Path:
    return write_shards(solids(10))


def make_large_budget() -> CacheBudget:
    return CacheBudget(tf.distribute.get_strategy(), ram=10**6, gpu=0)


def open_batches(directory: Path, tier: str, batch: int = 4) -> Batches:
    data = DataSpec(**SIZE, cache=tier)
    return Batches(directory, "train", data, batch, seed=8, augment=AUGMENT, cache=make_large_budget())


def read_batches(batches: Batches, epoch: int = 0, **part: int) -> list[dict[str, np.ndarray]]:
    attached = [batches.attach(batch) for batch in batches.epoch(epoch, **part)]
    return [{name: np.asarray(value) for name, value in batch.items()} for batch in attached]


def assert_same(found: list[dict[str, np.ndarray]], expected: list[dict[str, np.ndarray]]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert value.dtype == theirs[name].dtype
            np.testing.assert_array_equal(value, theirs[name])


@pytest.mark.parametrize("tier", ["host", "device"])
def test_every_tier_gives_the_batches_of_none(directory: Path, tier: str) -> None:
    uncached = open_batches(directory, "none")
    cached = open_batches(directory, tier)
    assert (uncached.tier.name, cached.tier.name) == ("none", tier)
    for epoch in range(3):
        expected = read_batches(uncached, epoch)
        values = [10 * row for row in expected[2]["row"][:2]]
        assert expected[2]["image"][:, 0, 0, 0].tolist() == [*values, 0, 0]
        assert {"affine", "colour"} < expected[0].keys()
        assert_same(read_batches(cached, epoch), expected)


@pytest.mark.parametrize("tier", ["none", "host", "device"])
def test_starting_at_a_step_gives_the_rest_of_the_epoch(directory: Path, tier: str) -> None:
    batches = open_batches(directory, tier, 3)
    whole = read_batches(batches, 1)
    assert len(whole) == 4
    for start in range(5):
        assert_same(read_batches(batches, 1, start_step=start), whole[start:])


def test_batches_larger_than_a_block_are_the_same(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = read_batches(open_batches(directory, "none", 3), 1)
    monkeypatch.setattr("pipelines.input.batches.BLOCK_BYTES", 1)
    batches = open_batches(directory, "host", 3)
    assert batches.epoch(1).cardinality() == 4
    assert_same(read_batches(batches, 1), expected)


@pytest.mark.parametrize("tier", ["host", "device"])
def test_workers_together_give_the_batches_of_one(directory: Path, tier: str) -> None:
    batches = open_batches(directory, tier, 6)
    parts = [read_batches(batches, 1, worker=worker, workers=3) for worker in range(3)]
    together = [
        {name: np.concatenate([part[step][name] for part in parts]) for name in parts[0][step]}
        for step in range(2)
    ]
    assert_same(together, read_batches(open_batches(directory, "none", 6), 1))


def test_with_images_on_a_device_batches_hold_only_row_numbers(directory: Path) -> None:
    batches = open_batches(directory, "device")
    assert batches.epoch(0).element_spec.keys() == {"label", "weight", "row", "affine", "colour"}
    assert tuple(batches.epoch(0, workers=2).element_spec["row"].shape) == (2,)


@pytest.mark.parametrize("tier", ["host", "device"])
def test_images_are_decoded_once(directory: Path, tier: str) -> None:
    batches = open_batches(directory, tier)
    first = read_batches(batches)
    for path in directory.glob("*.arrow"):  # reading them again would fail
        path.write_bytes(bytes(path.stat().st_size))
    assert_same(read_batches(batches), first)


def test_filling_reports_progress(write_shards) -> None:
    reports = []
    cache = CacheBudget(ram=10**6, gpu=0, progress=lambda done, rows: reports.append((done, rows)))
    batches = Batches(write_shards(solids(20) * 5), "train", DataSpec(**SIZE, cache="host"), 10, cache=cache)
    assert reports == []
    batches.epoch(0)
    batches.epoch(1)
    assert reports == [(64, 100), (100, 100)]


def test_an_image_that_cannot_be_decoded_is_named_while_filling(write_shards) -> None:
    examples = [*solids(5), Record(solid(7)[:-20], 0, "folder/broken.png", (2, 3, 1))]
    batches = Batches(
        write_shards(examples), "train", DataSpec(**SIZE, cache="host"), 2, cache=make_large_budget()
    )
    with pytest.raises(DataError, match=r"row=5 id=folder/broken\.png"):
        batches.epoch(0)


def test_a_split_without_rows(write_shards) -> None:
    directory = write_shards([])
    for tier in ("host", "device"):
        data = DataSpec(**SIZE, cache=tier)
        batches = Batches(directory, "train", data, 2, cache=make_large_budget())
        assert read_batches(batches) == []


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """A shard set, and what two replicas found in a device cache of it (see `replicas_script.py`)."""
    folder = tmp_path_factory.mktemp("replicas")
    directory = write_shard_set(folder / "shards", ("ant", "bee", "cat"), {"train": solids(10)}, 3)
    out = folder / "found.npz"
    command = [sys.executable, str(SCRIPT), str(directory), str(out), *map(str, REPLICA_RAM)]
    environment = {"PYTHONPATH": str(SCRIPT.parents[3]), "GLASSBOX_LOGICAL_DEVICES": "2"}
    subprocess.run(command, check=True, env=environment, timeout=300)
    with np.load(out) as file:
        return directory, dict(file)


@pytest.mark.parametrize(("ram", "is_sharded"), REPLICA_RAM.items())
def test_replicas_get_their_images_whether_each_holds_all_or_a_part(
    replicas: tuple[Path, dict[str, np.ndarray]], ram: int, is_sharded: bool
) -> None:
    directory, found = replicas
    uncached = open_batches(directory, "none", 8)
    assert found[f"{ram}-is_sharded"] == is_sharded
    for epoch in range(2):
        # the last batch has two rows for one replica, and none for the other
        for step, expected in enumerate(read_batches(uncached, epoch)):
            np.testing.assert_array_equal(found[f"{ram}-{epoch}-{step}"], expected["image"])


@pytest.mark.parametrize("is_sharded", [False, True])
def test_every_part_is_on_the_device_of_its_replica(
    replicas: tuple[Path, dict[str, np.ndarray]], is_sharded: bool
) -> None:
    _, found = replicas
    devices = [name[-5:] for name in found[f"{is_sharded}-devices"]]
    assert devices == ["CPU:0", "CPU:1"]
    rows = [found[f"{is_sharded}-rows-{replica}"].tolist() for replica in (0, 1)]
    everything = list(range(42))
    assert rows == ([everything[:24], everything[24:]] if is_sharded else [everything] * 2)


@pytest.mark.parametrize("ram", REPLICA_RAM)
def test_attached_images_are_on_the_device_of_their_replica(
    replicas: tuple[Path, dict[str, np.ndarray]], ram: int
) -> None:
    _, found = replicas
    assert [name[-5:] for name in found[f"{ram}-devices"]] == ["CPU:0", "CPU:1"]


@pytest.mark.parametrize("ram", REPLICA_RAM)
def test_no_images_are_split(replicas: tuple[Path, dict[str, np.ndarray]], ram: int) -> None:
    """GPUs have no kernel for int64, so TensorFlow would move the images to the host and back."""
    _, found = replicas
    operations = set(found[f"{ram}-operations"].tolist())
    assert "GatherV2" in operations
    assert not operations & {"Split", "SplitV", "CollectiveReduceV2", "CollectiveReduceV3"}


@pytest.mark.parametrize("is_sharded", [False, True])
def test_building_the_parts_takes_no_memory_but_that_of_the_devices(
    replicas: tuple[Path, dict[str, np.ndarray]], is_sharded: bool
) -> None:
    """CPU devices use the memory of the decoded images, 42 MB."""
    _, found = replicas
    assert found[f"{is_sharded}-bytes"] < 4e6


def test_an_array_that_is_not_aligned_is_refused() -> None:
    """TensorFlow's kernels end the process on such an array."""
    array = allocate((64,), np.uint8)
    assert copy_to_device(array, "CPU:0").numpy().tolist() == [0] * 64
    with pytest.raises(ValueError, match="not aligned"):
        copy_to_device(array[8:], "CPU:0")


def test_images_of_any_number_of_bytes_can_be_on_a_device() -> None:
    for size in ((1, 1, 1), (2, 4, 1), (3, 3, 1), (5, 1, 3)):
        images = np.random.default_rng(0).integers(0, 256, (7, *size), np.uint8)
        rows = np.array([6, -1, 0, 3, 3])
        words = allocate_words(len(images), size)
        view_images(words, size)[:] = images
        on_device = DeviceImages(tf.distribute.get_strategy(), words, size)
        batch = on_device.attach({"row": tf.constant(rows)})
        np.testing.assert_array_equal(batch["image"], gather_images(images, rows))


def test_padding_is_black() -> None:
    images = np.full((2, 1, 1, 1), 255, np.uint8)
    assert gather_images(images, np.array([1, -1, 0])).ravel().tolist() == [255, 0, 255]
    assert images.ravel().tolist() == [255, 255]


@pytest.mark.parametrize(
    ("ram", "gpu", "strategy", "expected"),
    [
        (2 * BYTES, 0, True, "host"),
        (2 * BYTES - 2, 0, True, "none"),
        (2 * BYTES, 2 * BYTES, True, "device"),
        (2 * BYTES, 2 * BYTES - 2, True, "host"),
        (2 * BYTES, 2 * BYTES, False, "host"),  # no step that would attach the images
        (2 * BYTES - 2, 2 * BYTES, True, "none"),  # no way to the device
    ],
)
def test_auto_takes_the_fastest_that_fits_into_half_of_what_is_free(
    ram: int, gpu: int, strategy: bool, expected: str
) -> None:
    cache = CacheBudget(tf.distribute.get_strategy() if strategy else None, ram=ram, gpu=gpu)
    assert cache.choose(ROWS, DataSpec(**SIZE)).name == expected


class Replicas:
    num_replicas_in_sync = 4


@pytest.mark.parametrize(
    ("gpu", "expected"), [(2 * BYTES, "device"), (BYTES // 2, "device sharded"), (BYTES // 2 - 2, "host")]
)
def test_rows_are_sharded_if_not_all_of_them_fit(gpu: int, expected: str) -> None:
    tier = CacheBudget(Replicas(), ram=2 * BYTES, gpu=gpu).choose(ROWS, DataSpec(**SIZE))
    assert str(tier).startswith(f"cache: {expected} (")


def test_splits_share_the_memory() -> None:
    cache = CacheBudget(ram=4 * BYTES, gpu=0)
    # 24, 18, 12, 6 kB free
    assert [cache.choose(ROWS, DataSpec(**SIZE)).name for _ in range(4)] == [
        "host",
        "host",
        "host",
        "none",
    ]
    cache = CacheBudget(Replicas(), ram=10 * BYTES, gpu=3 * BYTES)
    tiers = [cache.choose(ROWS, DataSpec(**SIZE)) for _ in range(3)]
    assert [(tier.name, tier.is_sharded) for tier in tiers] == [
        ("device", False),
        ("device", False),
        ("device", True),
    ]
    assert cache.ram == 10 * BYTES
    cache = CacheBudget(tf.distribute.get_strategy(), ram=4 * BYTES, gpu=0)
    assert cache.choose(ROWS, DataSpec(**SIZE, cache="device")).name == "device"
    assert cache.ram == 3 * BYTES  # without a GPU the device's memory is the RAM


def test_the_tier_states_sizes_and_reason() -> None:
    cache = CacheBudget(workers=2, ram=11_200_000_000, gpu=0)
    assert (
        str(cache.choose(2000, DataSpec()))
        == "cache: host (135.0 MB of decoded images; 11.2 GB of RAM free for each worker; no GPU)"
    )
    cache = CacheBudget(Replicas(), ram=11_200_000_000, gpu=80_000_000_000)
    assert str(cache.choose(2000, DataSpec())) == (
        "cache: device (135.0 MB of decoded images; 11.2 GB of RAM free; 80.0 GB free on each of 4 GPUs)"
    )
    assert str(CacheBudget().choose(2000, DataSpec(cache="none"))) == "cache: none (as requested)"


@pytest.mark.parametrize("tier", ["host", "device"])
def test_a_tier_that_does_not_fit_is_refused_with_figures(tier: str) -> None:
    cache = CacheBudget(tf.distribute.get_strategy(), ram=BYTES, gpu=0)
    figures = r"0\.0 MB of decoded images; 0\.0 MB of RAM free; no GPU"
    with pytest.raises(ConfigError, match=rf"50% .* cache={tier} with {figures}\. Fix: use cache=auto"):
        cache.choose(ROWS, DataSpec(**SIZE, cache=tier))


def test_a_split_that_is_read_once_is_not_cached(directory: Path) -> None:
    batches = Batches(directory, "train", DataSpec(**SIZE, cache="device"), 4)
    assert str(batches.tier) == "cache: none (read once)"
    assert "image" in batches.epoch(0).element_spec


def test_workers_on_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.input.cache.measure_available_ram", lambda: 6 * BYTES)
    assert [CacheBudget(workers=workers).choose(ROWS, DataSpec(**SIZE)).name for workers in (1, 3, 4)] == [
        "host",
        "host",
        "none",
    ]


def write_files(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_available_ram_is_limited_by_kernel_and_container(tmp_path: Path) -> None:
    meminfo = "MemTotal:  900 kB\nMemAvailable:  500 kB\nHugePages_Total: 0\n"
    proc = write_files(tmp_path / "proc", {"meminfo": meminfo})
    assert measure_available_ram(proc, tmp_path / "none") == 512_000
    version_2 = {
        "memory.max": "300000\n",
        "memory.current": "200000\n",
        "memory.stat": "anon 1\ninactive_file 50000\n",
    }
    limited = write_files(tmp_path / "limited", version_2)
    assert measure_available_ram(proc, limited) == 150_000
    unlimited = write_files(tmp_path / "unlimited", {**version_2, "memory.max": "max\n"})
    assert measure_available_ram(proc, unlimited) == 512_000
    full = write_files(tmp_path / "full", {**version_2, "memory.current": "400000\n"})
    assert measure_available_ram(proc, full) == 0
    version_1 = {
        "memory/memory.limit_in_bytes": "100000\n",
        "memory/memory.usage_in_bytes": "60000\n",
        "memory/memory.stat": "inactive_file 0\n",
    }
    assert measure_available_ram(proc, write_files(tmp_path / "version_1", version_1)) == 40_000


def test_available_gpu_memory_is_that_of_the_fullest_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        '#!/bin/sh\ncase "$*" in *"-i 0,2") printf "300\\n200\\n";; *) printf "300\\n100\\n200\\n";; esac\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2")
    assert measure_available_gpu_memory() == 200 * 2**20
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert measure_available_gpu_memory() == 100 * 2**20
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert measure_available_gpu_memory() == 0


def test_freed_memory_is_reused() -> None:
    """Without the setting, 20 arrays of 1 MB are returned to the kernel every time: 5,000 page faults."""
    script = """
import resource
import numpy as np
from pipelines.input.memory import keep_freed_memory
keep_freed_memory()
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.ones(2**20, np.uint8) for _ in range(20)]
    del arrays
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    command = [sys.executable, "-c", script]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout
    assert int(output) < 100

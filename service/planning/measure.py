"""Measures the rates of this machine: the step of a network, decoding, and the batches of a cached set."""

from __future__ import annotations

import io
import resource
import statistics
import time
from collections.abc import Callable
from itertools import islice

import numpy as np
from PIL import Image

from pipelines.input import tfdata
from pipelines.input.batches import Batches
from pipelines.input.cache import CacheBudget
from pipelines.spec import DataSpec
from service.config import RunConfig
from service.planning.network import STORED_SHAPE, SyntheticBatches
from service.planning.rates import Measurement
from service.training.learner import Learner

SECONDS = 3.0  # of a measurement, after a call that is not measured
MIN_CALLS = 3
CALL_SECONDS = 0.25  # of a call of several updates, as in the training loop
MAX_UPDATES = 64
EPOCHS = 2**20  # of a pass, more than any measurement takes
MAX_CACHED_BYTES = 5e8  # decoded images of a set that is cached to measure its batches
SAMPLE_IMAGES = 64  # generated photos that are decoded together
QUALITY = 90


def measure_process_bytes() -> float:
    """Returns the largest memory that this process has taken so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def measure_calls(call: Callable[[], int]) -> Measurement:
    """Measures calls that each process some images, for `SECONDS`: the median of their rates.

    Args:
        call: Function that returns the number of images it has processed. The first call is not measured.
    """
    call()
    rates: list[float] = []
    cpu_seconds: list[float] = []
    deadline = time.perf_counter() + SECONDS
    while len(rates) < MIN_CALLS or time.perf_counter() < deadline:
        began = time.perf_counter()
        cpu_began = time.process_time()
        images = call()
        rates.append(images / (time.perf_counter() - began))
        cpu_seconds.append((time.process_time() - cpu_began) / images)
    return Measurement(statistics.median(rates), statistics.median(cpu_seconds))


def measure_step(config: RunConfig, batches: SyntheticBatches, learner: Learner) -> Measurement:
    """Measures the training step on one random batch in memory, several updates per call as in the loop.

    Args:
        config: Configuration of the run.
        batches: Batches that stand for its data.
        learner: Model, optimizer and steps of the first stage.
    """
    steps = learner.steps
    iterator = iter(batches.repeat())
    steps.start(1, 0, config.seed)
    steps.train(iterator, 0, 1)
    began = time.perf_counter()
    steps.train(iterator, 1, 1)
    per_update = time.perf_counter() - began
    updates = int(min(max(CALL_SECONDS / per_update, 1), MAX_UPDATES))

    def train() -> int:
        steps.train(iterator, 1, updates)
        return updates * config.global_batch

    return measure_calls(train)


def measure_decoding(config: RunConfig) -> Measurement:
    """Measures reading and decoding of the training split as batches, as an epoch without a cache does.

    Args:
        config: Configuration of the run, with an existing shard set.

    Raises:
        DataError: The shard set cannot be used.
    """
    data = config.data.model_copy(update={"cache": "none"})
    batches = Batches(
        config.shards, "train", data, config.global_batch, seed=config.seed, augment=config.augment
    )
    return _measure_batches(batches)


def measure_feeding(config: RunConfig) -> Measurement | None:
    """Measures the batches of a training split that is cached in RAM; None if it is too large to try.

    Args:
        config: Configuration of the run, with an existing shard set.

    Raises:
        DataError: The shard set cannot be used.
    """
    data = config.data.model_copy(update={"cache": "host"})
    batches = Batches(
        config.shards,
        "train",
        data,
        config.global_batch,
        seed=config.seed,
        augment=config.augment,
        cache=CacheBudget(),
    )
    pixel_bytes = int(np.prod(data.image_size)) * data.channels
    if batches.rows * pixel_bytes > MAX_CACHED_BYTES:
        return None
    return _measure_batches(batches)


def _measure_batches(batches: Batches) -> Measurement:
    """Measures parts of one pass over many epochs, so that starting a pass does not count."""
    iterator = iter(batches.epoch(1, epochs=EPOCHS))
    count = 1

    def take() -> int:
        images = 0
        for batch in islice(iterator, count):
            images += len(batch["row"])
        return images

    with batches.data_errors():
        for _ in range(2 * tfdata.PREFETCH):  # what was decoded ahead while nothing was taken
            take()
        began = time.perf_counter()
        for _ in range(tfdata.PREFETCH):
            take()
        per_batch = (time.perf_counter() - began) / tfdata.PREFETCH
        count = max(int(CALL_SECONDS / max(per_batch, 1e-6)), 2 * tfdata.PREFETCH)
        return measure_calls(take)


def measure_generated_photos(data: DataSpec, image_bytes: float) -> Measurement:
    """Measures decoding of generated photos of a given size, on all cores.

    Args:
        data: Size and channels of the images.
        image_bytes: Size of the encoded photos.
    """
    photo = encode_photo(image_bytes)
    photos = [photo] * SAMPLE_IMAGES
    shapes = np.tile(np.array(STORED_SHAPE, np.int32), (SAMPLE_IMAGES, 1))

    def decode() -> int:
        tfdata.decode_all(photos, shapes, data, "as-found")
        return SAMPLE_IMAGES

    return measure_calls(decode)


def encode_photo(image_bytes: float) -> bytes:
    """Encodes a JPEG of about a given size, 500x375 pixels: a smooth picture with as much noise as it takes.

    Args:
        image_bytes: Size of the file.
    """
    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), np.uint8))
    height, width, _ = STORED_SHAPE
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    noise = generator.standard_normal(STORED_SHAPE).astype(np.float32)
    smallest = 0.0
    largest = 128.0
    photo = b""
    for _ in range(12):  # halves the interval, to a thirtieth of a level
        strength = (smallest + largest) / 2
        photo = _encode(smooth + strength * noise)
        if len(photo) < image_bytes:
            smallest = strength
        else:
            largest = strength
    return photo


def _encode(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()

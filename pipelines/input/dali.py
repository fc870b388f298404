"""Decodes encoded images to uint8 batches with NVIDIA DALI: on a GPU if TensorFlow sees one, else on the CPU.

DALI takes the same bytes as tf.data and produces the same pixels: its decoder agrees to the last bit on the
CPU; its resize differs by at most one level, mostly because it rounds halves to even where TensorFlow rounds
them up. The batches reach TensorFlow through DLPack, without a copy.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from pipelines.cpus import count_process_cpus
from pipelines.errors import ConfigError
from pipelines.input.geometry import place_record
from pipelines.input.memory import keep_freed_memory
from pipelines.input.prefetch import prefetch
from pipelines.input.tfdata import GREY
from pipelines.records import Batch
from pipelines.spec import DataSpec

Array = NDArray[np.uint8]
Record = dict[str, Any]
Inputs = tuple[Any, ...]
Part = tuple[Any, dict[str, Any]]  # DALI's tensors of some images, and the arrays of the record

AHEAD = 2  # batches in DALI: one is decoded, one is next
READY = 2  # batches decoded ahead of the consumer
KEPT = 3  # batches taken last, whose memory DALI may not reuse yet: steps on a GPU run asynchronously
# One black pixel as a PPM file, which becomes a black image of any size.
BLACK = np.frombuffer(b"P6 1 1 255\n\0\0\0", np.uint8)


class UndecodableError(tf.errors.InvalidArgumentError):  # type: ignore[misc]
    """DALI cannot decode an image. The same kind of error as tf.data raises.

    Attributes:
        row: Row number of the image in the split.
    """

    def __init__(self, row: int) -> None:
        super().__init__(None, None, f"DALI cannot decode the image of row {row}")
        self.row = row


def is_selected(data: DataSpec, is_decodable: bool) -> bool:
    """Tells whether DALI decodes: if requested, or with `auto` if it, a GPU and all options are available.

    DALI can crash the whole process on data that is not an image (seen with 2.4 on the CPU). It is therefore
    used only for images that were decoded once when the shard set was built.

    Args:
        data: Requested backend and options.
        is_decodable: Whether the images were decoded once.

    Raises:
        ConfigError: DALI is requested, and the images were not decoded.
    """
    if data.backend == "dali" and not is_decodable:
        fix = "use backend=tfdata, or build the shard set with --check decode"
        raise ConfigError(
            "images that were decoded once, where DALI decodes",
            "backend=dali with shards of --check header",
            fix,
        )
    if data.backend != "auto":
        return data.backend == "dali"
    is_supported = is_decodable and data.decode == "exact"
    return bool(is_supported and tf.config.get_visible_devices("GPU") and is_available())


def is_available() -> bool:
    """Tells whether DALI can be imported, which takes about a second the first time."""
    try:
        import nvidia.dali.fn  # noqa: F401
    except ImportError:
        return False
    return True


def decode_batches(
    records: Callable[[], Iterable[Record]],
    data: DataSpec,
    batch: int,
    encoding: str,
    device: str | None = None,
    threads: int | None = None,
) -> Iterator[Batch]:
    """Decodes batches of encoded images on one device, in the same order.

    A thread reads the records and passes their bytes to DALI, whose own threads decode, while the caller
    computes. The caller's thread only wraps decoded memory as tensors. Threads and pipeline live as long as
    the iterator: closing or deleting it ends them.

    At the most, the results of `KEPT + READY + AHEAD + 1` batches are in memory: those that the caller may
    still use, those that it has not taken yet, and those that are being decoded. Whole images and their files
    are in memory for `AHEAD + 1` parts of batches, see `pipelines.input.parts`.

    Args:
        records: Returns a new iterator over batches, or over consecutive parts of each, which are decoded one
            after the other. A part of n images has `encoded`, a list of at most n encoded images as
            bytes-like objects, to fit them or with `encoding` raw also `shape`, int32 `[n, 3]`, and arrays
            `[n, ...]`: at least `label`, `weight` and `row`, and the `window` that is decoded of each image
            if `data` is that of `pipelines.input.geometry.use_windows`. Positions beyond the images are
            padding.
        data: Size and channels of the result.
        batch: Number of images per batch, B.
        encoding: Encoding of the shard set (see `pipelines.spec.ShardSpec`); only `raw` makes a difference.
        device: Name of the device that decodes and holds the batches; None for the first GPU, or the CPU.
        threads: Number of CPU threads of the pipeline; None for one per core.

    Returns:
        Batches with `image` uint8 `[B, H, W, C]`, black for padding, and every array except `encoded` and
        `shape` as a tensor. A batch on a GPU may be used until three more have been taken.

    Raises:
        ConfigError: DALI is not installed, or `decode=fast` is requested, which it does not have.
        UndecodableError: While iterating, in place of the batch: an image cannot be decoded.
    """
    if data.decode == "fast":
        raise ConfigError(
            "decode=exact where DALI decodes: it always decodes in full",
            f"decode={data.decode}",
            "use decode=exact or backend=tfdata",
        )
    if not is_available():
        raise ConfigError(
            "NVIDIA DALI to be installed", "backend=dali", "install nvidia-dali-cuda120 or use backend=tfdata"
        )
    keep_freed_memory()  # for the images that are read
    decoder = Decoder(data, batch, encoding == "raw", find_gpu(device), threads or count_process_cpus())
    return _iterate_batches(records, decoder, device)


def _iterate_batches(
    records: Callable[[], Iterable[Record]], decoder: Decoder, device: str | None
) -> Iterator[Batch]:
    # TensorFlow frees a tensor when Python does, even if a step on a GPU still reads it, because it expects
    # the memory to come from its own allocator, which reuses it in the order of the GPU's work. DALI does
    # not know this order. So the memory is held from here until `KEPT` more batches have been taken. Counted
    # is what the caller takes: batches that wait in the thread's queue are held by the queue, and do not
    # shorten the time of those before them.
    kept: deque[Any] = deque(maxlen=KEPT)
    for parts in _join_parts(prefetch(decoder.decode(records), READY), decoder.batch):
        kept.append([output for output, _ in parts])
        images = [tf.experimental.dlpack.from_dlpack(part.as_tensor().__dlpack__()) for part in kept[-1]]
        arrays = parts[0][1]
        if len(parts) > 1:
            arrays = {name: np.concatenate([part[name] for _, part in parts]) for name in arrays}
        # Here and not in the thread: on a GPU, copies wait for the step that is running.
        with tf.device(device):
            tensors = {name: tf.identity(tf.constant(values)) for name, values in arrays.items()}
            # The images are on this device already, except on one of several logical CPUs.
            image = tf.identity(images[0]) if len(images) == 1 else tf.concat(images, axis=0)
            batch = {"image": image, **tensors}
        yield cast(Batch, batch)


def _join_parts(parts: Iterator[Part], batch: int) -> Iterator[list[Part]]:
    """Yields the parts of every batch of `batch` images together."""
    joined: list[Part] = []
    count = 0
    for part in parts:
        joined.append(part)
        count += len(part[1]["row"])
        if count == batch:
            yield joined
            joined = []
            count = 0


def find_gpu(device: str | None) -> int | None:
    """Returns the number of the GPU with a device name, None for a CPU.

    TensorFlow and DALI number the GPUs alike if they are selected by `CUDA_VISIBLE_DEVICES` alone.

    Args:
        device: Name of a device, such as `/device:GPU:1`; None for the first GPU, or the CPU.
    """
    if device is None:
        return 0 if tf.config.get_visible_devices("GPU") else None
    spec = tf.DeviceSpec.from_string(device)
    return int(spec.device_index) if spec.device_type == "GPU" else None


@dataclass(frozen=True)
class Decoder:
    """Settings of a pipeline.

    Attributes:
        data: Size and channels of the result.
        batch: Number of images per batch, the largest of a part.
        is_raw: Whether the shard set stores raw pixels.
        gpu: Number of the GPU that decodes; None to decode on the CPU.
        threads: Number of CPU threads.
    """

    data: DataSpec
    batch: int
    is_raw: bool
    gpu: int | None
    threads: int

    def decode(self, records: Callable[[], Iterable[Record]]) -> Generator[Part, None, None]:
        """Yields the images of every record as a list of DALI's tensors, and the record's other arrays.

        Raises:
            UndecodableError: An image cannot be decoded.
        """
        in_progress: deque[Record] = deque()  # the oldest first

        def feed() -> Iterator[Inputs]:
            for record in records():
                inputs = _list_inputs(record, self)
                in_progress.append(record)
                yield inputs

        pipeline = build_pipeline(feed(), self)
        pipeline.schedule_run()  # draws from `feed`, whose errors pass unchanged
        while in_progress:
            record = in_progress.popleft()
            try:
                (output,) = pipeline.outputs()
            except RuntimeError as error:
                row = find_undecodable_row(record, self)
                if row is None:
                    raise  # something else went wrong
                raise UndecodableError(row) from error
            pipeline.schedule_run()  # decodes the next batch while the caller uses this one
            yield output, {name: record[name] for name in record if name not in ("encoded", "shape")}


def build_pipeline(source: Iterator[Inputs], decoder: Decoder) -> Any:
    """Builds the pipeline from encoded images to uint8 `[batch, H, W, C]`, without starting it.

    Args:
        source: Iterator over parts of batches: a list of at most `batch` arrays, encoded bytes or pixels
            `[h, w, C]`; to crop, also the windows of the images, to pad their targets, see
            `pipelines.input.geometry`.
        decoder: Settings of the pipeline.
    """
    from nvidia.dali import Pipeline, fn, types

    data = decoder.data
    has_gpu = decoder.gpu is not None
    options = {
        "num_threads": decoder.threads,
        "prefetch_queue_depth": AHEAD,
        "exec_dynamic": True,  # this executor does not reuse its results while anyone holds them
        "device_id": decoder.gpu,
    }
    is_placed = data.fit != "stretch"
    decoding = {
        "device": "mixed" if has_gpu else "cpu",
        "output_type": types.RGB if data.channels == 3 else types.GRAY,
        "adjust_orientation": False,  # shards hold upright images, and tf.data ignores EXIF too
        "jpeg_fancy_upsampling": True,  # as on the CPU
    }
    resizing = {"interp_type": types.INTERP_LINEAR, "antialias": data.antialias}
    with Pipeline(batch_size=decoder.batch, **options) as pipeline:
        inputs = fn.external_source(
            source=source,
            batch=True,
            num_outputs=2 if is_placed else 1,
            dtype=[types.UINT8, types.INT32] if is_placed else [types.UINT8],
            ndim=[3 if decoder.is_raw else 1, 1] if is_placed else [3 if decoder.is_raw else 1],
        )
        images = inputs[0]
        box = inputs[-1]
        if decoder.is_raw:
            images = fn.reshape(images, layout="HWC")
            images = images.gpu() if has_gpu else images
        if data.fit == "crop":
            part = {"start": box[:2], "shape": box[2:], "axes": (0, 1)}
            if decoder.is_raw:
                images = fn.slice(images, **part)
            else:
                images = fn.decoders.image_slice(images, **part, **decoding)
        elif not decoder.is_raw:
            images = fn.decoders.image(images, **decoding)
        if data.fit == "pad":
            images = fn.resize(images, size=fn.cast(box[2:], dtype=types.FLOAT), **resizing)
            # The image lies in the middle: from its corner, the result begins at minus the target's.
            images = fn.slice(
                images,
                start=-box[:2],
                shape=data.image_size,
                axes=(0, 1),
                out_of_bounds_policy="pad",
                fill_values=0,
            )
        else:
            images = fn.resize(images, size=data.image_size, **resizing)
        pipeline.set_outputs(images)
    return pipeline


def _list_inputs(record: Record, decoder: Decoder) -> Inputs:
    """Returns what one run of the pipeline takes, see `build_pipeline`."""
    images = _list_arrays(record, decoder)
    if decoder.data.fit == "stretch":
        return (images,)
    placements = place_record(record, decoder.data)
    return images, placements.window if decoder.data.fit == "crop" else placements.target


def _list_arrays(record: Record, decoder: Decoder) -> list[Array]:
    """Returns one array per position of a record, as DALI takes them; one black pixel for padding."""
    encoded = [np.frombuffer(image, np.uint8) for image in record["encoded"]]
    padding = len(record["row"]) - len(encoded)
    if not decoder.is_raw:
        return encoded + [BLACK] * padding
    pixels = [
        convert_pixels(image, shape, row, decoder.data)
        for image, shape, row in zip(encoded, record["shape"], record["row"], strict=False)
    ]
    return pixels + [np.zeros((1, 1, decoder.data.channels), np.uint8)] * padding


def convert_pixels(raw: Array, shape: NDArray[np.int32], row: int, data: DataSpec) -> Array:
    """Converts raw pixels to the requested number of channels, uint8 `[h, w, C]`.

    Args:
        raw: Bytes of the pixels, uint8 `[h * w * c]`.
        shape: int32 `[3]`: height, width and channels of the stored image.
        row: Row number of the image in the split, for the error.
        data: Number of channels of the result.

    Raises:
        UndecodableError: The number of pixels does not match the shape.
    """
    if len(raw) != np.prod(shape):
        raise UndecodableError(int(row))
    height, width, channels = shape
    pixels = raw.reshape(height, width, channels)
    if channels == data.channels:
        return pixels
    if data.channels == 3:
        return np.repeat(pixels, 3, axis=2)
    grey = pixels @ np.array(GREY, np.uint32) // sum(GREY)  # [h, w]
    return grey.astype(np.uint8)[..., None]


def find_undecodable_row(record: Record, decoder: Decoder) -> int | None:
    """Returns the first row of a batch whose image cannot be decoded by itself, or None."""
    count = len(record["encoded"])
    inputs = _list_inputs(record, decoder)
    singles = (tuple(part[place : place + 1] for part in inputs) for place in range(count))
    pipeline = build_pipeline(singles, replace(decoder, batch=1))
    for row in record["row"][:count]:
        try:
            pipeline.run()
        except RuntimeError:
            return int(row)
    return None

"""Runs the tasks of a build on Ray: one task per shard."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

from pipelines.cluster import count_cpus, put_object, ray_session, run_tasks
from pipelines.shards.arrow import ImageBuffer
from pipelines.shards.markers import ShardResult
from pipelines.shards.output import BuildOutput
from pipelines.shards.plan import PlannedShard
from pipelines.shards.task import build_shard
from pipelines.sources import Source
from pipelines.spec import ShardSpec


class BuildContext(NamedTuple):
    """The part of a task's arguments that all tasks of a build share.

    Attributes:
        source: Ray's reference to the source, in a tuple, so that its content is not sent with every task.
            Empty if every task gets its own part of the source.
        spec: Options of the shard set.
        output: Destination of the shards.
    """

    source: tuple[Any, ...]
    spec: ShardSpec
    output: BuildOutput


@contextmanager
def start_workers(
    source: Source, spec: ShardSpec, output: BuildOutput, workers: int | None
) -> Iterator[BuildContext]:
    """Connects to the cluster and starts worker processes, which hold the source unless it can be divided.

    Args:
        source: Source of the images.
        spec: Options of the shard set.
        output: Destination of the shards.
        workers: Largest number of tasks at a time; None for one per CPU.

    Yields:
        The context to pass to `build_on_workers`.
    """
    with ray_session():
        reference = () if hasattr(source, "select") else (put_object(source),)
        context = BuildContext(reference, spec, output)
        calls = [(context,)] * min(workers or count_cpus(), count_cpus())
        with closing(run_tasks(_load_source, calls, lambda index: "the start of a worker")) as tasks:
            for _ in tasks:
                pass
        yield context


def build_on_workers(
    source: Source, context: BuildContext, missing: Sequence[PlannedShard], workers: int | None
) -> Generator[tuple[PlannedShard, ShardResult], None, None]:
    """Builds shards, at most `workers` at a time, and yields results as they arrive. See `run_tasks`."""

    def describe(index: int) -> str:
        shard = missing[index]
        return f"{shard.file}, images {shard.start} to {shard.stop - 1} of {shard.source_split}"

    calls = _Calls(source, context, missing)
    with closing(run_tasks(_build, calls, describe, workers)) as results:
        for index, result in results:
            yield missing[index], result


class _Calls(Sequence[tuple[Any, ...]]):
    """Arguments of the tasks, computed when a task is submitted.

    Args:
        source: Source of the images.
        context: What all tasks share.
        missing: Shards to build.
    """

    def __init__(self, source: Source, context: BuildContext, missing: Sequence[PlannedShard]) -> None:
        self._select = getattr(source, "select", None)
        self._context = context
        self._missing = missing

    def __len__(self) -> int:
        return len(self._missing)

    def __getitem__(self, index: Any) -> Any:
        shard = self._missing[index]
        part = None
        if self._select is not None:
            part = self._select(shard.source_split, shard.start, shard.stop)
        return self._context, shard, part


def _build(context: BuildContext, planned_shard: PlannedShard, part: Source | None) -> ShardResult:
    source = part if part is not None else _get_source(context.source[0])
    return build_shard(source, planned_shard, context.spec, context.output, _get_image_buffer())


def _load_source(context: BuildContext) -> None:
    if context.source:
        _get_source(context.source[0])


@lru_cache(maxsize=1)  # once per worker process, which runs one task at a time
def _get_image_buffer() -> ImageBuffer:
    return ImageBuffer()


@lru_cache(maxsize=1)  # once per worker process
def _get_source(reference: Any) -> Source:
    import ray

    source: Source = ray.get(reference)
    return source

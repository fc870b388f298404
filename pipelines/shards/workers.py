"""Runs the tasks of a build on Ray: one task per shard."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.cluster import count_cpus, put_object, ray_session, run_tasks
from pipelines.shards.plan import PlannedShard
from pipelines.shards.task import ShardResult, build_shard
from pipelines.sources import Source
from pipelines.spec import ShardSpec


class BuildContext(NamedTuple):
    """The part of a task's arguments that all tasks of a build share.

    Attributes:
        source: Ray's reference to the source, in a tuple. Otherwise, Ray would send its content with every
            task; for a folder of a million images, that is a list of a million paths.
        spec: Options of the shard set.
        out: Directory of the shard set.
        work: Directory for shards in progress.
    """

    source: tuple[Any]
    spec: ShardSpec
    out: Path
    work: Path


@contextmanager
def start_workers(
    source: Source, spec: ShardSpec, out: Path, work: Path, workers: int | None
) -> Iterator[BuildContext]:
    """Connects to the cluster and starts worker processes that hold the source.

    Args:
        source: Source of the images.
        spec: Options of the shard set.
        out: Directory of the shard set.
        work: Directory for shards in progress.
        workers: Largest number of tasks at a time; None for one per CPU.

    Yields:
        The context to pass to `build_on_workers`.
    """
    with ray_session():
        context = BuildContext((put_object(source),), spec, out, work)
        calls = [(context,)] * min(workers or count_cpus(), count_cpus())
        with closing(run_tasks(_load_source, calls, lambda index: "the start of a worker")) as tasks:
            for _ in tasks:
                pass
        yield context


def build_on_workers(
    context: BuildContext, missing: Sequence[PlannedShard], workers: int | None
) -> Generator[tuple[PlannedShard, ShardResult], None, None]:
    """Builds shards, at most `workers` at a time, and yields results as they arrive. See `run_tasks`."""

    def describe(index: int) -> str:
        shard = missing[index]
        return f"{shard.file}, images {shard.start} to {shard.stop - 1} of {shard.source_split}"

    calls = [(context, planned_shard) for planned_shard in missing]
    with closing(run_tasks(_build, calls, describe, workers)) as results:
        for index, result in results:
            yield missing[index], result


def _build(context: BuildContext, planned_shard: PlannedShard) -> ShardResult:
    return build_shard(_get_source(context.source[0]), planned_shard, context.spec, context.out, context.work)


def _load_source(context: BuildContext) -> None:
    _get_source(context.source[0])


@lru_cache(maxsize=1)  # once per worker process
def _get_source(reference: Any) -> Source:
    import ray

    source: Source = ray.get(reference)
    return source

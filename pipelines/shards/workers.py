"""The Ray tasks of a build: one a shard."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.cluster import count_cpus, ray_session, run_tasks
from pipelines.shards.plan import PlannedShard
from pipelines.shards.task import ShardResult, build_shard
from pipelines.sources import Source
from pipelines.spec import ShardSpec


class BuildTasks(NamedTuple):
    """What all tasks of a build are told.

    Attributes:
        source: Reference to the source, in a tuple, so that Ray does not send its content with every task: a folder
            of a million images is a list of a million paths.
        spec: How shards are made.
        out: The shard set.
        work: Where shards are made.
    """

    source: tuple[Any]
    spec: ShardSpec
    out: Path
    work: Path


@contextmanager
def start_workers(
    source: Source, spec: ShardSpec, places: tuple[Path, Path], workers: int | None
) -> Iterator[BuildTasks]:
    """Connects to the cluster and starts worker processes that hold the source.

    Args:
        source: Where the images come from.
        spec: How shards are made.
        places: The shard set, and where shards are made.
        workers: Tasks at a time, at most; None for one a CPU.

    Yields:
        What tasks are told.
    """
    with ray_session():
        import ray

        order = BuildTasks((ray.put(source),), spec, *places)
        calls = [(order,)] * min(workers or count_cpus(), count_cpus())
        with closing(run_tasks(_receive, calls, lambda place: "the start")) as ready:
            for _ in ready:
                pass
        yield order


def build_on_workers(
    order: BuildTasks, missing: Sequence[PlannedShard], workers: int | None
) -> Generator[tuple[PlannedShard, ShardResult], None, None]:
    """Has shards built, at most `workers` at a time, and yields them as they come. See `run_tasks`."""

    def name(place: int) -> str:
        planned = missing[place]
        return f"{planned.file}, images {planned.start} to {planned.stop - 1} of {planned.source_split}"

    with closing(run_tasks(_build, [(order, planned) for planned in missing], name, workers)) as results:
        for place, result in results:
            yield missing[place], result


def _build(order: BuildTasks, planned: PlannedShard) -> ShardResult:
    return build_shard(_received(order.source[0]), planned, order.spec, order.out, order.work)


def _receive(order: BuildTasks) -> None:
    _received(order.source[0])


@lru_cache(maxsize=1)  # once a worker process
def _received(reference: Any) -> Source:
    import ray

    source: Source = ray.get(reference)
    return source

"""Prints a plan for people: the table of stages, the duration, the resources, and what was inferred."""

from __future__ import annotations

from rich.table import Table

from pipelines.text import escape_name, render_table
from service.planning.plan import Plan
from service.planning.stages import Roofline, Stage

HOUR = 3600.0
MINUTE = 60.0
UNITS = ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def format_plan(plan: Plan) -> str:
    """Returns a plan as text, one fact or stage per line.

    Args:
        plan: Predicted stages, duration and sizes, with the source of every rate.
    """
    parts = [render_table(_build_facts(plan))]
    if plan.fill_roofline:
        parts.append(f"filling the cache, once\n{_format_stages(plan.fill_roofline)}")
    title = "images/s of all hosts together; a stage with a share above 100 % makes the devices wait"
    parts.append(f"{title}\n{_format_stages(plan.roofline)}")
    parts.append(render_table(_build_resources(plan)))
    if plan.notes:
        parts.append("\n".join(["inferred", *(f"  {escape_name(note)}" for note in plan.notes)]))
    return "\n\n".join(parts)


def format_size(size: float) -> str:
    """Formats a number of bytes with three digits in the largest unit of at least 1."""
    for factor, unit in UNITS:
        if size >= factor:
            return f"{size / factor:.3g} {unit}" if size < 999.5 * factor else f"{size / factor:,.0f} {unit}"
    return f"{size:.0f} bytes"


def format_duration(seconds: float) -> str:
    """Formats a duration in seconds, minutes or hours."""
    if seconds < MINUTE:
        return f"{seconds:.3g} s"
    if seconds < HOUR:
        return f"{seconds / MINUTE:.3g} min"
    return f"{seconds / HOUR:,.3g} h" if seconds < 1000 * HOUR else f"{seconds / HOUR:,.0f} h"


def _build_facts(plan: Plan) -> Table:
    """Builds the lines about the training as a whole."""
    workload = plan.workload
    network = workload.network
    table = Table.grid(padding=(0, 2))
    table.add_row("machines", plan.site.devices)
    table.add_row(
        "model",
        f"{network.name}: {network.parameters:,} parameters, {network.trainable_parameters:,} trainable; "
        f"{network.multiply_adds / 1e9:.3g} G multiply-adds for an image",
    )
    table.add_row(
        "images",
        f"{workload.train_images:,} for training, {workload.validation_images:,} for validation; "
        f"{workload.epochs} epochs of {workload.steps:,} steps of {workload.global_batch:,}",
    )
    table.add_row("cache", workload.cache_reason.removeprefix("cache: "))
    duration = plan.duration
    evaluations = f"{workload.evaluations} evaluations of {format_duration(duration.evaluation_seconds)}"
    fill = f", {format_duration(duration.fill_seconds)} to fill the cache" if duration.fill_seconds else ""
    table.add_row(
        "duration",
        f"{format_duration(duration.total_seconds)}: first epoch "
        f"{format_duration(duration.first_epoch_seconds)}, last epoch "
        f"{format_duration(duration.epoch_seconds)}{fill}, {evaluations}; without the start",
    )
    table.add_row("bottleneck", _describe_bottleneck(plan))
    return table


def _describe_bottleneck(plan: Plan) -> str:
    first = _describe_limit(plan.roofline)
    later = _describe_limit(plan.later_roofline)
    return first if first == later else f"{first}; in the last epoch {later}"


def _describe_limit(roofline: Roofline) -> str:
    rate = f"{roofline.images_per_second:,.0f} images/s"
    share = roofline.images_per_second / roofline.required
    # The devices themselves have a share of 1 but for rounding.
    waiting = "" if share > 1 - 1e-9 else f", {share:.0%} of what the devices could train on"
    return f"{roofline.bottleneck} ({rate}{waiting})"


def _format_stages(roofline: Roofline) -> str:
    """Formats the table of stages."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("stage", "required", "delivers", "share", "work", "source"):
        table.add_column(name, justify="right" if name in ("required", "delivers", "share") else "left")
    for stage in roofline.stages:
        table.add_row(*_describe_stage(stage, roofline))
    return render_table(table)


def _describe_stage(stage: Stage, roofline: Roofline) -> tuple[str, ...]:
    required = stage.passes * roofline.required
    return (
        stage.name,
        f"{required:,.0f}",
        f"{stage.images_per_second:,.0f}",
        f"{required / stage.images_per_second:.0%}",
        stage.work,
        stage.rate.source,
    )


def _build_resources(plan: Plan) -> Table:
    """Builds the lines about memory, disk and network."""
    sizes = plan.sizes
    site = plan.site
    table = Table.grid(padding=(0, 2))
    each = "" if site.hosts == 1 else " on each host"
    parts = ", ".join(f"{name} {format_size(size)}" for name, size in sizes.ram_parts.items())
    table.add_row("RAM", f"{format_size(sizes.ram_bytes)}{each} of {format_size(site.ram_bytes)}: {parts}")
    if site.gpus:
        table.add_row(
            "GPU memory",
            f"at most {format_size(sizes.gpu_memory_bytes)} of {format_size(site.gpu_memory_bytes)}",
        )
    table.add_row(
        "shards",
        f"{sizes.train_shards:,} for training of {format_size(sizes.shard_bytes)}, "
        f"{sizes.validation_shards:,} for validation; {format_size(sizes.set_bytes)} in all",
    )
    if sizes.disk_cache_bytes:
        kept = "holds the whole set" if sizes.is_set_cached else "does not hold the set: it is fetched again"
        table.add_row(
            "disk cache",
            f"{format_size(sizes.disk_cache_bytes)}{each}; a budget of {format_size(site.disk_bytes)} {kept}",
        )
        table.add_row(
            "egress",
            f"{format_size(sizes.fetched_bytes)} from the store; "
            f"{format_size(sizes.fetched_bytes_without_lanes)} without lanes, "
            f"{format_size(sizes.fetched_bytes_with_lanes)} with data.lanes="
            f"{plan.workload.lanes if plan.workload.lanes > 1 else site.hosts}",
        )
    if sizes.all_reduce_bytes:
        table.add_row(
            "all-reduce",
            f"{format_size(sizes.all_reduce_bytes)} sent by each replica in each of "
            f"{plan.workload.updates:,} updates; {format_size(sizes.all_reduce_total_bytes)} in all",
        )
    table.add_row(
        "checkpoints",
        f"{sizes.checkpoint_bytes:,} bytes each; {format_size(sizes.checkpoints_bytes)} are kept in all",
    )
    return table

"""Plans of trainings: duration, bottleneck and resources, before anything is started."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from service.failures import translate_failures

if TYPE_CHECKING:
    from service.planning.plan import Plan


@translate_failures()
def plan(
    preset: str | None = None,
    data: str | os.PathLike[str] | None = None,
    *,
    rates: dict[str, float] | None = None,
    overrides: dict[str, Any] | None = None,
    **options: Any,
) -> Plan:
    """Predicts duration, bottleneck and resources of a training.

    Args:
        preset: Name of a preset, or path or URI of a YAML file; None with `model`.
        data: Shard set, or path or URI of one; None with `images`.
        rates: What stages can deliver, by the names of `service.planning.rates.RateSpec`: `{"decode": 9000}`.
        overrides: Settings of the run by dotted key: `{"epochs": 90, "data.cache": "none"}`.
        options: Options of `glassbox plan` by their names, such as `images`, `kb`, `gpu`, `gpus`, `hosts` and
            `measure`; see `service.planning.request.PlanRequest`.

    Returns:
        The plan; `hours`, `bottleneck`, `images_per_second` and `to_json()` are what it is mostly used for.

    Raises:
        ConfigError: An option is missing, invalid or contradicts another.
        DataError: The shard set does not exist or is damaged.
    """
    from pipelines.errors import ConfigError, suggest
    from service.planning.request import PlanRequest, plan_training

    known = [name for name in PlanRequest.__dataclass_fields__ if name not in ("preset", "data", "overrides")]
    for name, value in options.items():
        if name not in known:
            raise ConfigError("an option of a plan", f"{name}={value!r}", suggest(name, known))
    settings = dict(overrides or {}) | {f"rates.{name}": value for name, value in (rates or {}).items()}
    return plan_training(
        PlanRequest(
            preset=preset,
            data=None if data is None else os.fspath(data),
            overrides=tuple(f"{key}={json.dumps(value)}" for key, value in settings.items()),
            **options,
        )
    )

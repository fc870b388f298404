"""`glassbox plan`: what a training will need, and how long it will take, before it is started."""

from __future__ import annotations

import argparse
import json

from pipelines.text import print_text
from service.commands.common import PRESET_HELP, SHARDS_HELP, Subparsers, add_command


def add_parser(commands: Subparsers[argparse.ArgumentParser]) -> None:
    """Adds `plan` to the command line."""
    parser = add_command(commands, "plan", "predict duration, bottleneck and resources of a training", run)
    parser.add_argument("--preset", metavar="NAME", help=PRESET_HELP)
    parser.add_argument("--data", metavar="SHARDS", help=SHARDS_HELP)
    parser.add_argument("--images", type=int, metavar="N", help="training images, without a shard set")
    parser.add_argument("--validation-images", type=int, metavar="N", help="validation images (default: 0)")
    parser.add_argument("--kb", type=float, metavar="SIZE", help="mean size of a stored image, 1,000 bytes")
    parser.add_argument("--classes", type=int, metavar="N", help="number of classes (default: 1000)")
    parser.add_argument("--size", metavar="PIXELS", help="image size: side, or HEIGHTxWIDTH")
    parser.add_argument("--model", metavar="MODEL", help="model in place of that of the preset")
    parser.add_argument("--gpu", metavar="NAME", help="t4, v100, a100-40gb, a100, l4, h100 or h200")
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs of each host (default: 1 with --gpu)")
    parser.add_argument("--hosts", type=int, metavar="N", help="number of hosts (default: 1)")
    parser.add_argument(
        "--storage", metavar="KIND", help="where the shards are: disk, nfs, s3, gs, az or http"
    )
    parser.add_argument("--cores", type=int, metavar="N", help="CPU cores of each host")
    parser.add_argument("--ram-gb", type=float, metavar="SIZE", help="RAM of each host, 10**9 bytes")
    parser.add_argument("--disk-gb", type=float, metavar="SIZE", help="disk of each host for cached shards")
    parser.add_argument(
        "--measure",
        action=argparse.BooleanOptionalAction,
        help="measure the rates of this machine, for hosts like it (default: unless GPUs are named)",
    )
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="change a setting, or a rate: epochs=90 rates.decode=9000 (service/planning/README.md)",
    )


def run(options: argparse.Namespace) -> None:
    """Prints the plan.

    Raises:
        GlassboxError: See `service.planning.request.plan_training` for the conditions.
    """
    from service.planning.request import PlanRequest, plan_training
    from service.planning.text import format_plan

    settings = {name: getattr(options, name) for name in PlanRequest.__dataclass_fields__}
    plan = plan_training(PlanRequest(**{**settings, "overrides": tuple(options.overrides)}))
    if options.json:
        print(json.dumps(plan.to_json(), indent=2))
    else:
        print_text(format_plan(plan))

"""Process that trains on all devices it sees and prints what came out: for the checks of several replicas.

Usage: `gpu_run.py SETTINGS`, with a JSON object:

- `shards`, `folder`: shard set, and directory of the runs.
- `runs`: for each name the changes of the configuration; an existing run is resumed.
- `rank`, `addresses`: rank and addresses of the workers; one address for a single process.
- `ram`, `gpu`: free bytes of RAM and of each GPU to assume, which decide how the cache is divided; absent to
  measure them.
- `speed`: arguments of `measure_speed`; absent for no measurement.

Prints a line of JSON: the number of replicas, metrics and a digest of the weights for each run, and images
per second.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent), str(HERE)]  # works without an installed project

MODEL = "cats_dogs_small"  # without dropout, whose masks differ between replicas
IMAGE_SIZE = (150, 150)
GLOBAL_BATCH = 64  # divides by up to eight replicas, and 64
POLL_SECONDS = 0.05
SPEED_IMAGE = (224, 224, 3)


def main() -> None:
    """Trains the runs and measures the step."""
    settings = json.loads(sys.argv[1])
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print to standard error instead
    rank = settings.get("rank", 0)
    addresses = settings.get("addresses", [""])
    if len(addresses) > 1:
        cluster = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
        os.environ["TF_CONFIG"] = json.dumps(cluster)

    import tensorflow as tf

    from service.devices import configure_devices
    from service.training import loop
    from service.training.strategy import WorkerContext, choose_strategy

    is_deterministic = any(run.get("deterministic") for run in settings["runs"].values())
    configure_devices(deterministic=is_deterministic)
    # Losses are compared; speed is measured in bfloat16.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    worker = WorkerContext(rank, world_size=len(addresses), local_size=len(addresses))
    strategy = choose_strategy(GLOBAL_BATCH, worker)
    loop.choose_strategy = lambda *arguments: strategy  # one for all runs: collectives of two get mixed up
    if settings.get("ram"):
        loop.CacheBudget = partial(loop.CacheBudget, ram=settings["ram"], gpu=settings["gpu"])
    results = {name: train(settings, name, worker) for name in settings["runs"]}
    report = {"replicas": strategy.num_replicas_in_sync, "runs": results}
    if settings.get("speed"):
        report["images_per_second"] = measure_speed(strategy, **settings["speed"])
    print(json.dumps(report), file=output, flush=True)


def train(settings: dict[str, Any], name: str, worker: Any) -> dict[str, Any]:
    """Trains or resumes a run, and returns its metrics, cache and weights."""
    from service.config import RunConfig
    from service.runs import Run
    from service.training.loop import Loop

    run = Run(Path(settings["folder"]) / name)
    config = RunConfig.model_validate(
        {
            "preset": "gpu-check",
            "model": MODEL,
            "shards": settings["shards"],
            "global_batch": GLOBAL_BATCH,
            "epochs": 2,
            "data": {"image_size": IMAGE_SIZE},
            # Small steps of SGD pass on what rounding differs in, without amplifying it.
            "optimizer": {"name": "sgd", "learning_rate": 0.003},
        }
        | settings["runs"][name]
    )
    if worker.is_chief and not run.config_path.is_file():
        run.create(config.model_dump(mode="json"))
    while not run.config_path.is_file():  # the chief creates it
        time.sleep(POLL_SECONDS)
    training = Loop(config, run, worker)
    try:
        training.run_epochs()
    finally:
        training.writer.wait()
    weights = training.learner.model.get_weights()
    digest = hashlib.sha256(b"".join(weight.tobytes() for weight in weights)).hexdigest()
    return {"metrics": run.metrics(), "digest": digest, "cache": str(training.train.tier)}


def measure_speed(strategy: Any, batch: int, updates: int, network: str) -> float:
    """Measures a step of a network for 1,000 classes in bfloat16, compiled, on images made on each device.

    Args:
        strategy: Strategy of the training.
        batch: Images per replica.
        updates: Updates of a call; the first call is not measured.
        network: `resnet50`, or `linear` for the least work.
    """
    import keras
    import numpy as np
    import tensorflow as tf
    from gpu_context import measure_seconds

    from service.models.layers import add_head, build_logits_model
    from service.training.learner import precision_scope
    from service.training.step import StepOptions, Steps

    shape = SPEED_IMAGE if network == "resnet50" else (8, 8, 3)

    def make_images(batch_without_images: Any) -> Any:
        numbers = tf.random.stateless_uniform((batch, *shape), (0, 0), maxval=256, dtype=tf.int32)
        return {**batch_without_images, "image": tf.cast(numbers, tf.uint8)}

    with strategy.scope(), precision_scope("mixed_bfloat16"):
        image = keras.Input(shape)
        x = keras.layers.Rescaling(1 / 255)(image)
        if network == "resnet50":
            base = keras.applications.ResNet50(include_top=False, weights=None, pooling="avg", input_tensor=x)
            x = base.output
        else:
            x = keras.layers.Flatten()(x)
        model = keras.Model(image, add_head(x, 1000))
        options = StepOptions(xla=True, attach=make_images)
        weights = model.trainable_variables
        optimizer = keras.optimizers.SGD(1e-4)
        logits_model = build_logits_model(model)
        steps = Steps(logits_model, optimizer, weights, np.float32([1e-4]), strategy, options)
    labels = {
        "label": np.zeros(batch, np.int32),
        "weight": np.ones(batch, np.float32),
        "row": np.arange(batch),
    }
    dataset = tf.data.Dataset.from_tensors(labels).repeat()
    batches = iter(strategy.distribute_datasets_from_function(lambda context: dataset))
    steps.start(1, 0, seed=0)
    seconds = measure_seconds(lambda: steps.train(batches, 0, updates), 1.0 if network == "resnet50" else 0.0)
    return updates * batch * strategy.num_replicas_in_sync / seconds


if __name__ == "__main__":
    main()

"""Sums numbers with another worker that takes part three times and then stops: RANK PORT,PORT LIMIT [gpu].

Worker 0 prints, as JSON, how the sum is communicated, and the error that ends its fourth sum after some
seconds. With `gpu` the sum is only traced, as if TensorFlow had found a GPU.
"""

from __future__ import annotations

import json
import os
import sys
import time

import tensorflow as tf

from service.training.strategy import WorkerContext, choose_strategy, find_minimum
from service.training.watchdog import Watchdog

SUMS = 3


def main(rank: int, ports: list[str], limit: float, has_gpu: bool) -> None:
    if has_gpu:
        tf.config.get_visible_devices = lambda kind: [
            tf.config.PhysicalDevice("/physical_device:GPU:0", kind)
        ]
    addresses = [f"127.0.0.1:{port}" for port in ports]
    cluster = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
    os.environ["TF_CONFIG"] = json.dumps(cluster)
    worker = WorkerContext(rank, world_size=len(ports))
    strategy = choose_strategy(len(ports), worker)

    @tf.function
    def sum_ones() -> tf.Tensor:
        def sum_on_replica() -> tf.Tensor:
            return tf.distribute.get_replica_context().all_reduce("sum", tf.ones([]))

        return strategy.experimental_local_results(strategy.run(sum_on_replica))[0]

    (operation,) = [
        operation
        for operation in sum_ones.get_concrete_function().graph.get_operations()
        if operation.type == "CollectiveReduceV2"
    ]
    summary = {
        "hint": operation.get_attr("communication_hint").decode(),
        "timeout": operation.get_attr("timeout_seconds"),
    }
    if has_gpu:
        print(json.dumps(summary))
        return
    summary["minimum"] = find_minimum(strategy, worker, [2**40 + rank, 7 - rank])
    watchdog = Watchdog(limit)
    for _ in range(SUMS):
        with watchdog.watch("sum"):
            total = float(sum_ones())
        if total != len(ports):
            raise RuntimeError(f"a sum of {total}")
    if rank:
        time.sleep(3600)
    began = time.monotonic()
    try:
        with watchdog.watch("sum"):
            sum_ones()
    except tf.errors.UnavailableError as error:
        print(json.dumps(summary | {"seconds": time.monotonic() - began, "error": error.message}))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2].split(","), float(sys.argv[3]), "gpu" in sys.argv[4:])

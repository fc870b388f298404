"""Chooses how many of the available devices train: as many as can share the batch evenly."""

from __future__ import annotations

from pipelines.augment.draw import check_batch
from pipelines.errors import ConfigError
from pipelines.spec import AugmentSpec


def can_share(replicas: int, global_batch: int, augment: AugmentSpec | None = None) -> bool:
    """Tells whether replicas can share a batch evenly.

    Args:
        replicas: Number of replicas.
        global_batch: Images per step, over all replicas.
        augment: Augmentation, which may mix the images of a replica in pairs; None for no augmentation.
    """
    if global_batch % replicas:
        return False
    if augment is None:
        return True
    try:
        check_batch(augment, global_batch // replicas)
    except ConfigError:
        return False
    return True


def choose_replicas(devices: int, global_batch: int, augment: AugmentSpec | None = None) -> int:
    """Returns the largest number of devices that can share a batch evenly; 1 if no number can.

    Args:
        devices: Number of available devices, at least 1.
        global_batch: Images per step, over all replicas.
        augment: Augmentation; None for no augmentation.
    """
    for replicas in range(devices, 1, -1):
        if can_share(replicas, global_batch, augment):
            return replicas
    return 1


def describe_unused_devices(
    kind: str, replicas: int, devices: int, global_batch: int, augment: AugmentSpec | None = None
) -> str | None:
    """Returns the sentence about devices that do not train, with batches that would use all; None if all do.

    Args:
        kind: Name of the devices, in the plural.
        replicas: Number of devices that train.
        devices: Number of available devices.
        global_batch: Images per step, over all replicas.
        augment: Augmentation; None for no augmentation.
    """
    if replicas >= devices:
        return None
    sizes = find_even_batches(devices, global_batch, augment)
    # With pairs to mix, a batch may divide evenly and still leave an odd number of images to a replica.
    in_pairs = "" if global_batch % devices else " in pairs to mix"
    return (
        f"training on {replicas} of {devices} {kind}, because more cannot share a batch of {global_batch} "
        f"evenly{in_pairs}; global_batch={' or '.join(map(str, sizes))} would use all {devices}"
    )


def find_even_batches(replicas: int, global_batch: int, augment: AugmentSpec | None = None) -> list[int]:
    """Returns the batch sizes nearest to a given one that replicas can share: the next smaller and larger.

    Args:
        replicas: Number of replicas.
        global_batch: Images per step that they cannot share.
        augment: Augmentation; None for no augmentation.
    """
    step = replicas
    if not can_share(replicas, replicas, augment):  # one image per replica has no other to be mixed with
        step = 2 * replicas
    smaller = global_batch // step * step
    return [size for size in (smaller, smaller + step) if size]

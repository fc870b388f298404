"""Configures the devices of a process, once at its start: GPUs, logical CPUs, threads and determinism."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipelines.cpus import count_process_cpus, find_assigned_resources
from pipelines.errors import ConfigError
from pipelines.text import print_lines

LOGICAL_DEVICES = "GLASSBOX_LOGICAL_DEVICES"  # environment variable: number of logical CPU devices
# Makes XLA compile the same deterministic kernels every time; it also turns autotuning off.
DETERMINISTIC_XLA = "--xla_gpu_deterministic_ops=true"

# Oldest drivers for CUDA 12, and for compiling the PTX of CUDA 12.5, which TensorFlow 2.21 is built with:
# https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
# https://docs.nvidia.com/cuda/archive/12.5.1/cuda-toolkit-release-notes/index.html
MINIMUM_DRIVER = 525
MINIMUM_PTX_DRIVER = 555
PTX_CUDA_VERSION = 12050  # 12.5, as cuDriverGetVersion counts
DRIVER_FILE = Path("/proc/driver/nvidia/version")
DEFAULT_CUDA_CACHE = Path(".nv", "ComputeCache")  # below the home directory


def _print_notice(message: str) -> None:
    print_lines(message, file=sys.stderr)


def configure_devices(
    *, use_gpu: bool = True, deterministic: bool = False, notify: Callable[[str], None] = _print_notice
) -> None:
    """Configures TensorFlow's devices and threads in this process. Call it before TensorFlow computes.

    The memory of GPUs is allocated as it is needed, so that several processes can share one. Tasks of Ray
    that have requested no GPU see none. With `GLASSBOX_LOGICAL_DEVICES=N`, GPUs are hidden and the CPU is
    split into N logical devices, each of which trains as one replica. A process that has computed already,
    such as a notebook, keeps its devices and threads.

    Args:
        use_gpu: Whether the process may use GPUs; False for the driver of a Ray cluster.
        deterministic: Whether operations give the same bits every time, also on GPUs. Once set, it holds
            until the process ends.
        notify: Function that receives a message for the user.

    Raises:
        ConfigError: `GLASSBOX_LOGICAL_DEVICES` is not a number of devices, TensorFlow has computed with
            another number already, or the driver of the GPUs is too old.
    """
    logical_devices = read_logical_devices()

    import tensorflow as tf

    if logical_devices:
        _split_cpu(logical_devices)
    elif not use_gpu or _has_no_assigned_gpu():
        with suppress(RuntimeError):  # in use already
            tf.config.set_visible_devices([], "GPU")
    else:
        _configure_gpus(notify)
    if deterministic and tf.config.get_visible_devices("GPU"):  # CPUs are deterministic in any case
        enable_determinism()
    _limit_threads()


def read_logical_devices() -> int | None:
    """Reads the number of logical CPU devices from the environment; None if it is not set.

    Raises:
        ConfigError: The value is not a whole number of at least 1.
    """
    value = os.environ.get(LOGICAL_DEVICES, "").strip()
    if not value:
        return None
    if not value.isdecimal() or int(value) < 1:
        raise ConfigError(
            "a number of logical CPU devices, at least 1",
            f"{LOGICAL_DEVICES}={value}",
            f"set {LOGICAL_DEVICES}=2, or unset it",
        )
    return int(value)


def _split_cpu(count: int) -> None:
    """Splits the CPU into logical devices, and hides the GPUs, which would be used instead.

    Raises:
        ConfigError: TensorFlow has computed with another number of devices.
    """
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_visible_devices([], "GPU")
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    except RuntimeError:
        if len(tf.config.list_logical_devices("CPU")) == count and not tf.config.list_logical_devices("GPU"):
            return
        raise ConfigError(
            "a process in which TensorFlow has not computed yet",
            f"{LOGICAL_DEVICES}={count}",
            f"start a new process, or unset {LOGICAL_DEVICES}",
        ) from None


def _has_no_assigned_gpu() -> bool:
    """Tells whether this is a task or worker of Ray that has requested no GPU."""
    assigned = find_assigned_resources()
    return assigned is not None and not assigned.get("GPU")


def _configure_gpus(notify: Callable[[str], None]) -> None:
    """Checks the driver of the visible GPUs, and lets their memory grow.

    Raises:
        ConfigError: The driver is too old.
    """
    import tensorflow as tf

    gpus = tf.config.get_visible_devices("GPU")
    is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or tf.config.list_physical_devices("GPU")
    if not gpus and (is_hidden or not tf.test.is_built_with_cuda()):
        return
    built_for = tf.sysconfig.get_build_info().get("cuda_compute_capabilities", ())
    capabilities = [tf.config.experimental.get_device_details(gpu).get("compute_capability") for gpu in gpus]
    is_compiled_by_driver = needs_ptx([pair for pair in capabilities if pair], built_for)
    check_driver(is_compiled_by_driver)  # also without a GPU: TensorFlow finds none if the driver is very old
    if is_compiled_by_driver and is_cuda_cache_empty():
        notify(
            "the CUDA driver compiles TensorFlow's kernels for this GPU: once, for minutes; they are kept in "
            f"{find_cuda_cache()}"
        )
    if "CUDA_CACHE_PATH" in os.environ:
        with suppress(OSError):
            find_cuda_cache().mkdir(parents=True, exist_ok=True)
    for gpu in gpus:
        with suppress(RuntimeError):  # in use already, as in a notebook
            tf.config.experimental.set_memory_growth(gpu, True)


def needs_ptx(capabilities: Sequence[tuple[int, int]], built_for: Sequence[str]) -> bool:
    """Tells whether the driver has to compile TensorFlow's kernels for one of the GPUs.

    A binary `sm_XY` runs on GPUs of compute capability X.Y and of later ones with the same X.

    Args:
        capabilities: Compute capability of each GPU, major and minor number.
        built_for: Compute capabilities of TensorFlow's kernels: `sm_80` for binaries, `compute_90` for PTX.
    """
    binaries = [name.removeprefix("sm_") for name in built_for if name.startswith("sm_")]
    pairs = [(int(name[:-1]), int(name[-1])) for name in binaries if name.isdecimal()]
    for major, minor in capabilities:
        if pairs and not any(major == other and minor >= lowest for other, lowest in pairs):
            return True
    return False


def check_driver(
    is_compiling: bool,
    file: Path = DRIVER_FILE,
    read_cuda_version: Callable[[], int | None] | None = None,
) -> None:
    """Checks that the NVIDIA driver can run TensorFlow; a version that cannot be read is not checked.

    Args:
        is_compiling: Whether the driver has to compile TensorFlow's kernels.
        file: File in which the driver describes itself.
        read_cuda_version: Returns the version of CUDA that the driver's library supports, as
            `cuDriverGetVersion`: newer than the driver itself with NVIDIA's forward compatibility package.

    Raises:
        ConfigError: The driver is too old.
    """
    version = read_driver_version(file)
    minimum = MINIMUM_PTX_DRIVER if is_compiling else MINIMUM_DRIVER
    if version is None or int(version.partition(".")[0]) >= minimum:
        return
    supported = (read_cuda_version or _read_cuda_version)()
    if supported is not None and supported >= PTX_CUDA_VERSION:
        return
    reason = ", which compiles TensorFlow's kernels for this GPU" if is_compiling else ""
    raise ConfigError(
        f"an NVIDIA driver of version {minimum} or newer{reason}",
        f"driver={version}",
        "update the driver, or set CUDA_VISIBLE_DEVICES=-1 to compute on CPUs",
    )


def read_driver_version(file: Path = DRIVER_FILE) -> str | None:
    """Reads the version of the NVIDIA driver, such as `560.35.03`, from a file, else from `nvidia-smi`.

    Args:
        file: File in which the driver describes itself.

    Returns:
        The version; None if it cannot be read.
    """
    with suppress(OSError, UnicodeDecodeError):
        match = re.search(r"^NVRM version:.*?\s(\d{3,}\.\d+(?:\.\d+)?)\s", file.read_text(), re.M)
        if match:
            return match[1]
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with suppress(OSError, UnicodeDecodeError, subprocess.SubprocessError):
        output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
        match = re.match(r"\s*(\d{3,}\.\d+(?:\.\d+)?)\s*$", output.partition("\n")[0])
        if match:
            return match[1]
    return None


def _read_cuda_version() -> int | None:
    """Returns the version of CUDA that the driver's library supports; None without a library."""
    version = ctypes.c_int(0)
    try:
        library: Any = ctypes.CDLL("libcuda.so.1")
        if library.cuDriverGetVersion(ctypes.byref(version)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    return version.value


def find_cuda_cache() -> Path:
    """Returns the folder in which the driver keeps the kernels that it has compiled."""
    path = os.environ.get("CUDA_CACHE_PATH")
    return Path(path) if path else Path.home() / DEFAULT_CUDA_CACHE


def is_cuda_cache_empty() -> bool:
    """Tells whether the driver has kept no compiled kernels yet."""
    try:
        return next(find_cuda_cache().iterdir(), None) is None
    except OSError:
        return True


def enable_determinism() -> None:
    """Makes operations on GPUs deterministic, those of TensorFlow and XLA, and products full float32."""
    import tensorflow as tf

    flags = os.environ.get("XLA_FLAGS", "").split()
    if DETERMINISTIC_XLA not in flags:
        os.environ["XLA_FLAGS"] = " ".join([*flags, DETERMINISTIC_XLA])  # XLA reads it when it compiles first
    tf.config.experimental.enable_op_determinism()
    tf.config.experimental.enable_tensor_float_32_execution(False)


def _limit_threads() -> None:
    """Limits the threads of TensorFlow to the CPUs that this process may use.

    At least two operations can run in parallel. On a single thread, a step would run while the next batch is
    requested, and its time would count as waiting for input.
    """
    import tensorflow as tf

    count = count_process_cpus()
    with suppress(RuntimeError):  # TensorFlow is already running
        if "TF_NUM_INTRAOP_THREADS" not in os.environ:
            tf.config.threading.set_intra_op_parallelism_threads(count)
        tf.config.threading.set_inter_op_parallelism_threads(max(count, 2))

"""Part g: what the machine and the image provide: driver, kernel cache, NCCL, InfiniBand, JPEG decoders."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from gpu_context import CheckContext, query_gpus, synchronize
from gpu_part import Checks
from gpu_results import ABSENT, Row

MIN_CUDA_CACHE = 2 << 30  # bytes of TensorFlow's kernels for one GPU, about
NVJPEG_SUCCESS = 0
CACHE_VARIABLE = "CUDA_CACHE_PATH"
CAPABILITIES_VARIABLE = "NVIDIA_DRIVER_CAPABILITIES"
NCCL_PACKAGE = "nvidia.nccl"
NVJPEG_PACKAGE = "nvidia.nvjpeg"


def list_checks(context: CheckContext) -> Checks:
    """Yields the properties, then the time of the first kernels."""
    checks: dict[str, Callable[[CheckContext], Row]] = {
        "driver": check_driver,
        "kernel cache": check_kernel_cache,
        "driver capabilities": check_capabilities,
        "hardware JPEG decoder": check_jpeg_decoder,
        "NCCL": check_nccl,
        "InfiniBand": check_infiniband,
        "links between GPUs": describe_links,
        "first kernels": measure_first_kernels,
    }
    for name, check in checks.items():
        yield name, lambda check=check: [check(context)]


def check_driver(context: CheckContext) -> Row:
    """Compares the driver with the oldest that can compile TensorFlow's kernels for a new GPU."""
    from service.devices import MINIMUM_PTX_DRIVER

    name = "version of the driver"
    goal = f">= {MINIMUM_PTX_DRIVER}"
    versions = query_gpus("driver_version") if context.has_gpu else []
    if not versions:
        return Row("g", name, goal=goal, note=f"{ABSENT}: no GPU")
    major = float(versions[0].split(".")[0])
    return Row("g", name, gpu=major, goal=goal, passed=major >= MINIMUM_PTX_DRIVER, note=versions[0])


def check_kernel_cache(context: CheckContext) -> Row:
    """Tells whether compiled kernels outlive this container."""
    path = os.environ.get(CACHE_VARIABLE)
    name = f"{CACHE_VARIABLE}, a directory that stays"
    if not path:
        note = f"{ABSENT}: not set; kernels go to ~/.nv/ComputeCache, and in a container are compiled again"
        return Row("g", name, note=note)
    folder = Path(path)
    is_writable = folder.is_dir() and os.access(folder, os.W_OK)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if is_writable else 0
    limit = int(os.environ.get("CUDA_CACHE_MAXSIZE", 1 << 30))
    note = f"{path}, {size / 2**30:.2f} GiB, at most {limit / 2**30:.2g}"
    passed = is_writable and limit >= MIN_CUDA_CACHE
    return Row(
        "g", name, "GiB", **context.as_column(size / 2**30), goal="writable, 2 GiB", passed=passed, note=note
    )


def check_capabilities(context: CheckContext) -> Row:
    """Tells whether the container may use the video engines, which decode JPEG in hardware."""
    name = f"{CAPABILITIES_VARIABLE} includes video"
    value = os.environ.get(CAPABILITIES_VARIABLE)
    if value is None:
        return Row("g", name, note=f"{ABSENT}: not set; outside of a container it has no effect")
    words = {word.strip() for word in value.split(",")}
    passed = bool(words & {"video", "all"})
    return Row("g", name, "of 1", **context.as_column(float(passed)), goal="1", passed=passed, note=value)


def check_jpeg_decoder(context: CheckContext) -> Row:
    """Counts the JPEG engines that nvJPEG finds; the A100, H100 and later data center GPUs have some."""
    name = "hardware JPEG decoder"
    if not context.has_gpu:
        return Row("g", name, "engines", note=f"{ABSENT}: no GPU")
    library = load_library(NVJPEG_PACKAGE, "libnvjpeg.so.12")
    if library is None or not hasattr(library, "nvjpegGetHardwareDecoderInfo"):
        return Row("g", name, "engines", note=f"{ABSENT}: no nvJPEG that can tell")
    synchronize()  # nvJPEG needs the GPU's context
    handle = ctypes.c_void_p()
    status = library.nvjpegCreateSimple(ctypes.byref(handle))
    if status != NVJPEG_SUCCESS:
        return Row("g", name, "engines", passed=False, note=f"failed: nvjpegCreateSimple: status {status}")
    engines = ctypes.c_uint()
    cores = ctypes.c_uint()
    library.nvjpegGetHardwareDecoderInfo(handle, ctypes.byref(engines), ctypes.byref(cores))
    library.nvjpegDestroy(handle)
    note = f"{cores.value} cores each" if engines.value else "absent: DALI decodes on the GPU's cores"
    return Row("g", name, "engines", gpu=float(engines.value), note=note)


def check_nccl(context: CheckContext) -> Row:
    """Reads the version of the NCCL library that several GPUs sum through."""
    library = load_library(NCCL_PACKAGE, "libnccl.so.2")
    if library is None:
        passed = False if context.devices > 1 and context.has_gpu else None
        return Row("g", "NCCL", goal="for several GPUs", passed=passed, note=f"{ABSENT}: no libnccl.so.2")
    version = ctypes.c_int()
    library.ncclGetVersion(ctypes.byref(version))
    return Row("g", "NCCL, version", **context.as_column(float(version.value)), note=str(version.value))


def check_infiniband(context: CheckContext) -> Row:
    """Tells whether libibverbs can be loaded, without which NCCL between machines falls back to TCP."""
    devices = sorted(path.name for path in Path("/sys/class/infiniband").glob("*"))
    adapters = f"adapters: {', '.join(devices) or 'none'}"
    try:
        ctypes.CDLL("libibverbs.so.1")
    except OSError:
        passed = False if devices else None
        note = f"{ABSENT}: no libibverbs; {adapters}"
        return Row("g", "libibverbs", goal="where there are adapters", passed=passed, note=note)
    passed = True if devices else None
    column = context.as_column(1.0)
    return Row(
        "g", "libibverbs", "of 1", **column, goal="where there are adapters", passed=passed, note=adapters
    )


def describe_links(context: CheckContext) -> Row:
    """Describes how the GPUs of this machine are connected."""
    names = query_gpus("name") if context.has_gpu else []
    if len(names) < 2:
        return Row("g", "GPUs of this machine", note=f"{ABSENT}: {len(names)} GPU")
    has_nvlink = any(Path("/proc/driver/nvidia-nvlink").glob("*"))
    note = f"{names[0]}, {'NVLink' if has_nvlink else 'no NVLink driver'}"
    return Row("g", "GPUs of this machine", gpu=float(len(names)), note=note)


def measure_first_kernels(context: CheckContext) -> Row:
    """Measures the first step of a network, with the kernels that the driver compiles for a new GPU."""
    from gpu_steps import measure_model

    name = "first steps of cats_dogs_small, with compiling"
    if not context.has_gpu:
        return Row("g", name, "s", note=f"{ABSENT}: no GPU")
    start = time.perf_counter()
    for xla in (False, True):
        measure_model(context, "cats_dogs_small", "float32", xla)
    seconds = time.perf_counter() - start
    return Row("g", name, "s", gpu=seconds, note="much less in the next process, if the kernel cache stays")


def load_library(package: str, file: str) -> ctypes.CDLL | None:
    """Loads a library from a wheel of NVIDIA, or else that of the system; None if there is none."""
    for path in (*_find_in_package(package, file), file):
        try:
            return ctypes.CDLL(str(path))
        except OSError:
            continue
    return None


def _find_in_package(package: str, file: str) -> Iterator[Path]:
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        return
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        yield from Path(folder).rglob(file)

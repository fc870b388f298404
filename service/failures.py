"""Tells what a failure of TensorFlow, Ray, a GPU or a driver means: a table of messages, causes and fixes."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from textwrap import shorten

from pipelines.errors import ConfigError, TrainingError

MAX_REASON = 240  # characters of TensorFlow's message in an error
NEWER_DRIVER = "install NVIDIA driver 555 or newer (nvidia-smi prints the version)"
SMALLER_BATCH = "train with a smaller global_batch and a larger accumulate"
FREE_GPU = "end other programs that use the GPU (nvidia-smi lists them)"
CUDA_LIBRARIES = "install the CUDA libraries of glassbox[gpu], with no others on LD_LIBRARY_PATH"


# Errors of a file system that a user can cause, in contrast to a file of our own that is missing
FILE_ERRORS = (
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EACCES,
    errno.EPERM,
    errno.ELOOP,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.ENAMETOOLONG,
)


class WorkerLostError(Exception):
    """A worker died or stopped responding, independently of the run."""


@dataclass(frozen=True)
class FailureKind:
    """One row of the table of failures: it matches by the message, or by the type of the exception.

    Attributes:
        name: Short name of the kind, for tests and documents.
        expected: What a run needs and did not have.
        fix: What the user can try, in the imperative.
        pattern: Pattern that a line of the message contains; None for no pattern.
        types: Names of the exceptions that match with any message.
        is_peer: Whether the failure means the loss of another worker, if there is another one.
    """

    name: str
    expected: str
    fix: str
    pattern: re.Pattern[str] | None = None
    types: tuple[str, ...] = ()
    is_peer: bool = False

    def matches(self, line: str, types: Sequence[str]) -> bool:
        """Tells whether a line of the message of an exception of some types belongs to this kind."""
        has_pattern = self.pattern is not None and self.pattern.search(line) is not None
        return has_pattern or any(name in self.types for name in types)


def _compile(*alternatives: str) -> re.Pattern[str]:
    return re.compile("|".join(alternatives), re.IGNORECASE)


# The first row that matches decides. Causes come before the loss of a worker, because a worker that fails
# passes its own message on to the others: "Collective ops is aborted by: OOM when allocating ...".
FAILURES = (
    FailureKind(
        "compiler",
        "GPU code that compiles",
        f"train with xla=off, or {NEWER_DRIVER}",
        _compile(
            r"\bptxas\b",
            r"\bnvlink\b",
            r"libdevice",
            r"register allocation failed",
            r"ptx compilation",
            r"failed to load in-memory cubin",
        ),
    ),
    FailureKind(
        "host memory",
        "enough memory on this machine",
        f"end other programs, set data.cache=none, or {SMALLER_BATCH}",
        _compile(
            r"oom when allocating.*(device:CPU|by allocator (mkl)?cpu|by allocator \w*host)",
            r"failed to allocate (host|unified) memory",
            r"running low on memory",  # Ray's memory monitor
        ),
        ("MemoryError", "OutOfMemoryError"),
    ),
    FailureKind(
        "device memory",
        "enough memory on the device",
        f"end other programs that use its memory (nvidia-smi lists those of a GPU), or {SMALLER_BATCH}",
        _compile(
            r"oom when allocating",
            r"out[ _]of[ _]memory",
            r"(CUDNN|CUBLAS)_STATUS_ALLOC_FAILED",
            r"failed to allocate .*(memory|device|request)",
            r"RESOURCE_EXHAUSTED",
        ),
        ("ResourceExhaustedError",),
    ),
    FailureKind(
        "driver",
        "an NVIDIA driver and a GPU that this TensorFlow supports",
        f"{NEWER_DRIVER}, or compute on the CPU with CUDA_VISIBLE_DEVICES=-1",
        _compile(
            r"CUDA_ERROR_(UNSUPPORTED_PTX_VERSION|INVALID_PTX|INVALID_IMAGE|INVALID_HANDLE)",
            r"CUDA_ERROR_(NO_BINARY_FOR_GPU|SYSTEM_DRIVER_MISMATCH|COMPAT_NOT_SUPPORTED_ON_DEVICE)",
            r"driver version is insufficient",
            r"no kernel image is available",
            r"unsupported toolchain",
        ),
    ),
    FailureKind(
        "cuDNN",
        "a cuDNN library that works",
        f"{FREE_GPU}, or {CUDA_LIBRARIES}",
        _compile(r"cudnn", r"\bDNN (library|in stream executor)", r"\bno DNN\b", r"no algorithm worked"),
    ),
    FailureKind(
        "cuBLAS",
        "a cuBLAS library that works",
        f"{FREE_GPU}, or {CUDA_LIBRARIES}",
        _compile(r"cublas", r"\bBLAS (operation|support)", r"blas \w*gemm\w* launch failed", r"cusolver"),
    ),
    # NCCL reports a peer that has closed its connection as an error of the system or of the remote process.
    FailureKind(
        "lost worker",
        "workers that respond",
        "set NCCL_DEBUG=WARN to see the reason, then continue with --resume",
        _compile(r"remote process exited or there was a network error", r"NCCL.*unhandled system error"),
        is_peer=True,
    ),
    FailureKind(
        "NCCL",
        "GPUs that can communicate by NCCL",
        "set NCCL_DEBUG=WARN to see the reason, make /dev/shm larger, or train on one GPU",
        _compile(r"nccl"),
    ),
    FailureKind(
        "GPU",
        "a GPU that works",
        "look for Xid errors in dmesg, then continue with --resume, on another GPU if it happens again",
        _compile(r"CUDA_ERROR_", r"\bcuda\w*error\b", r"\bcuda error\b", r"\bXid\b"),
    ),
    FailureKind(
        "lost worker",
        "workers that respond",
        "check the network between the workers, then continue with --resume",
        _compile(
            r"collective ops is aborted",
            r"collective has timed out",
            r"connection (reset|refused|timed out|closed)",
            r"failed to connect",
            r"socket closed",
            r"broken pipe",
            r"no route to host",
            r"name resolution",
            r"RecvBuf",
            r"RST_STREAM",
            r"GOAWAY",
            r"stream removed",
            r"incarnation",
            r"heartbeat",
            r"coordination service",
            r"deadline exceeded",
            r"error reported from /job:",
        ),
        ("AbortedError", "CancelledError", "DeadlineExceededError", "UnavailableError"),
        is_peer=True,
    ),
    FailureKind(
        "XLA",
        "a model that XLA can compile",
        "train with xla=off",
        _compile(r"\bXLA", r"\bHLO\b", r"tf2xla", r"JIT compilation failed", r"autotun"),
    ),
    FailureKind(
        "Ray",
        "Ray to keep its processes alive",
        "run the same command again; GLASSBOX_RAY_LOGS=FOLDER keeps the logs of a local Ray",
        None,
        ("RayError",),
    ),
    # Also with several workers: the loss of a worker has one of the types or messages above. A restart would
    # repeat an internal error of the worker itself, and without end if there is a checkpoint in between.
    FailureKind(
        "TensorFlow",
        "TensorFlow to compute without an internal error",
        "continue with --resume; if it happens again, try xla=off",
        None,
        ("InternalError", "UnknownError", "AbortedError", "DeadlineExceededError", "UnavailableError"),
    ),
)


def translate_failure(error: Exception, workers: int = 1) -> Exception:
    """Turns a failure of TensorFlow, Ray, a GPU or its memory into an error with its cause and a fix.

    Args:
        error: Exception that a training or an inference raised.
        workers: Number of workers that compute together.

    Returns:
        A `TrainingError` that ends the run; a `ConfigError` for a file in the way or without permission; a
        `WorkerLostError` if the failure shows that another of several workers is lost; the error itself if it
        is none of these, such as a bug.
    """
    if isinstance(error, OSError) and error.errno in FILE_ERRORS and error.filename is not None:
        return _build_file_error(error)
    types = _list_types(error)
    if not types:
        return error
    lines = list_causes(str(error)) or [types[0]]
    match = _find_kind(lines, types, workers)
    if match is None:
        return error
    kind, line = match
    reason = f"{types[0]}: {shorten(line, MAX_REASON, placeholder=' ...')}".rstrip(".")
    if kind.is_peer:
        return WorkerLostError(f"another worker does not respond: {reason}")
    return TrainingError(kind.expected, f"error={reason}", kind.fix)


@contextmanager
def translate_failures() -> Iterator[None]:
    """Translates failures of TensorFlow, a GPU or the file system within a block or a decorated function."""
    try:
        yield
    except Exception as error:
        translation = translate_failure(error)
        if translation is error:
            raise
        raise translation from None


def _build_file_error(error: OSError) -> ConfigError:
    file = os.fsdecode(error.filename)
    return ConfigError(
        "files that can be read and written",
        f"file={file} ({error.strerror})",
        "check what is in its place, its permissions and the free space",
    )


def _list_types(error: Exception) -> list[str]:
    """Lists the types of TensorFlow, Ray or memory that an error has, the most specific first.

    None are those of `RayTaskError`, by which Ray passes on the exception of a task: it may be a bug.
    """
    bases = type(error).__mro__
    is_of_a_task = any(base.__name__ == "RayTaskError" for base in bases)
    names = []
    for base in bases:
        is_memory = base is MemoryError
        is_tensorflow = base.__module__.startswith("tensorflow.") and hasattr(error, "error_code")
        is_ray = base.__module__ == "ray.exceptions" and not is_of_a_task
        if is_memory or is_tensorflow or is_ray:
            names.append(base.__name__)
    return names


def _find_kind(lines: list[str], types: list[str], workers: int) -> tuple[FailureKind, str] | None:
    """Finds the first kind of the table that one of the lines or types belongs to, and that line."""
    for kind in FAILURES:
        if kind.is_peer and workers == 1:
            continue
        for line in lines:
            if kind.matches(line, types):
                return kind, line
    return None


# Lines of TensorFlow's messages that say where an operation was created, not what went wrong.
_PLACES = re.compile(
    r"graph execution error|detected at node|file \"|hint:|\[\[|<stack traces|the op is created at|"
    r"\d+ (root error|successful operations|derived errors)|errors may have originated|stack trace for op|"
    r"the error could be from a previous operation|function call stack|original stack trace",
    re.IGNORECASE,
)
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # TensorFlow prints causes in bold
_ANNOTATIONS = re.compile(
    r"\{\{\w+ [^}]*\}\}|\s*\[Op:[^\]]*\]( name:.*)?|^\(\d+\)\s*|/job:\w+/replica:\d+/task:\d+/|\[_Xla[^\]]*\]"
)


def list_causes(message: str) -> list[str]:
    """Returns the lines of a message of TensorFlow that say what went wrong, without names of nodes.

    Args:
        message: Message with node names, stack traces and hints around its cause.
    """
    causes = []
    for line in _COLOURS.sub("", message).splitlines():
        text = _ANNOTATIONS.sub("", line.strip()).strip()
        if text and not _PLACES.match(text):
            causes.append(text)
    return causes


def find_memory_failure(message: str) -> TrainingError | None:
    """Returns the error for a worker that was ended for lack of memory on its machine; None for others.

    Args:
        message: Message of Ray about the end of a worker.
    """
    for kind in FAILURES:
        if kind.name == "host memory" and kind.pattern and kind.pattern.search(message):
            line = next(line for line in message.splitlines() if kind.pattern.search(line))
            return TrainingError(kind.expected, f"error={shorten(line, MAX_REASON).rstrip('.')}", kind.fix)
    return None

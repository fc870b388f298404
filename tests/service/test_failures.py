"""What failures of TensorFlow, GPUs and drivers mean: messages as they were reported, and their kind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.errors import TrainingError
from service.failures import (
    FAILURES,
    WorkerLostError,
    find_memory_failure,
    list_causes,
    translate_failure,
    translate_failures,
)

ROOT = Path(__file__).resolve().parents[2]


def build_error(type_name: str, message: str) -> Exception:
    """Returns an exception that looks like one of TensorFlow, which is not imported here."""

    def describe(error: Exception) -> str:
        return str(error.args[-1])

    names = {"__module__": "tensorflow.python.framework.errors_impl", "error_code": 13, "__str__": describe}
    return type(type_name, (Exception,), names)(message)


GRAPH = """Graph execution error:

Detected at node {node} defined at (most recent call last):
  File "/app/train.py", line 10, in <module>

  File "/app/model.py", line 5, in call

{cause}
\t [[{{{{node {node}}}}}]]
Hint: If you want to see a list of allocated tensors when OOM happens, add \
report_tensor_allocations_upon_oom to RunOptions for \
current allocation info. This isn't available when running in Eager mode.
 [Op:__inference_train_15]"""
TWO_ROOTS = """2 root error(s) found.
  (0) RESOURCE_EXHAUSTED:  OOM when allocating tensor with shape[20,512] and type float on \
/job:localhost/replica:0/task:0/device:GPU:1 by allocator GPU_1_bfc
\t [[{{node dense/MatMul}}]]
  (1) CANCELLED:  Function was cancelled before it was started
0 successful operations.
1 derived errors ignored. [Op:__inference_train_7]"""
CASES = [
    # compiler
    (
        "InternalError",
        "ptxas exited with non-zero error code 65280, output: ptxas /tmp/tempfile-a, line 10; fatal   : "
        "Unsupported .version 7.8; current version is '7.4'",
        "compiler",
    ),
    ("InternalError", "libdevice not found at ./libdevice.10.bc [Op:__some_op]", "compiler"),
    ("ResourceExhaustedError", "Register allocation failed", "compiler"),
    # host memory
    (
        "ResourceExhaustedError",
        GRAPH.format(
            node="random_uniform/RandomUniform",
            cause="\x1b[1m\x1b[31mOOM when allocating tensor with shape[16777216,1048576] and type float on "
            "/job:localhost/replica:0/task:0/device:CPU:0 by allocator mklcpu\x1b[0m",
        ),
        "host memory",
    ),
    (
        "ResourceExhaustedError",
        "{{function_node __wrapped__Fill_device_/job:localhost/replica:0/task:0/device:CPU:0}} OOM when "
        "allocating tensor with shape[1048576,4194304] and type float on "
        "/job:localhost/replica:0/task:0/device:CPU:0 by allocator mklcpu [Op:Fill] name: ",
        "host memory",
    ),
    # device memory
    ("ResourceExhaustedError", TWO_ROOTS, "device memory"),
    (
        "ResourceExhaustedError",
        "Out of memory while trying to allocate 16.02TiB. [Op:__inference_h_39]",
        "device memory",
    ),
    (
        "InternalError",
        "failed to allocate 2.53G (2715310336 bytes) from device: CUDA_ERROR_OUT_OF_MEMORY: out of memory",
        "device memory",
    ),
    ("InternalError", "cudaSetDevice() on GPU:0 failed. Status: out of memory", "device memory"),
    ("UnknownError", "CUDNN_STATUS_ALLOC_FAILED\nin external/xla/cuda_dnn.cc(5823)", "device memory"),
    (
        "UnknownError",
        "Failed to determine best cudnn convolution algorithm for:\n%cudnn-conv = (f32[32,64,56,56])\n\n"
        "Original error: RESOURCE_EXHAUSTED: Out of memory while trying to allocate 4294967296 bytes.",
        "device memory",
    ),
    (
        "ResourceExhaustedError",
        "Collective ops is aborted by: OOM when allocating tensor with shape[256,112,112,64] and type float "
        "on /job:worker/replica:0/task:1/device:GPU:0 by allocator GPU_0_bfc\nThe error could be from a "
        "previous operation. Restart your program to reset.",
        "device memory",
    ),
    ("ResourceExhaustedError", "some limit", "device memory"),
    # driver
    (
        "InternalError",
        "'cuModuleLoadData(&module, data)' failed with 'CUDA_ERROR_UNSUPPORTED_PTX_VERSION'",
        "driver",
    ),
    (
        "InternalError",
        "{{function_node __wrapped__Mul_device_/job:localhost/replica:0/task:0/device:GPU:0}} "
        "'cuLaunchKernel(function, gridX, gridY, gridZ, blockX, blockY, blockZ, 0, "
        "reinterpret_cast<CUstream>(stream), params, nullptr)' failed with 'CUDA_ERROR_INVALID_HANDLE'",
        "driver",
    ),
    (
        "InternalError",
        "cudaGetDevice() failed. Status: CUDA driver version is insufficient for CUDA runtime version",
        "driver",
    ),
    # cuDNN
    ("FailedPreconditionError", "DNN library initialization failed. Look at the errors above.", "cuDNN"),
    ("UnimplementedError", "DNN library is not found.\n\t [[{{node conv2d/Conv2D}}]]", "cuDNN"),
    ("InvalidArgumentError", "No DNN in stream executor. [Op:Conv2D]", "cuDNN"),
    (
        "UnknownError",
        "Failed to get convolution algorithm. This is probably because cuDNN failed to initialize, so try "
        "looking to see if a warning log message was printed above.",
        "cuDNN",
    ),
    ("NotFoundError", "No algorithm worked!  Error messages:", "cuDNN"),
    (
        "InternalError",
        "Could not create cudnn handle: CUDNN_STATUS_INTERNAL_ERROR",
        "cuDNN",
    ),
    # cuBLAS
    (
        "InternalError",
        "Attempting to perform BLAS operation using StreamExecutor without BLAS support [Op:MatMul]",
        "cuBLAS",
    ),
    ("InternalError", "failed to create cublas handle: CUBLAS_STATUS_NOT_INITIALIZED", "cuBLAS"),
    ("InternalError", "Blas GEMM launch failed : a.shape=(32, 784), b.shape=(784, 128)", "cuBLAS"),
    # NCCL
    ("UnknownError", "Error invoking NCCL: unhandled cuda error", "NCCL"),
    (
        "UnknownError",
        "Collective ops is aborted by: Error invoking NCCL: unhandled cuda error\nThe error could be from a "
        "previous operation. Restart your program to reset.",
        "NCCL",
    ),
    # GPU
    (
        "InternalError",
        "Failed to synchronize GPU: CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered",
        "GPU",
    ),
    ("InternalError", "CUDA_ERROR_ECC_UNCORRECTABLE: uncorrectable ECC error encountered", "GPU"),
    # XLA
    ("UnknownError", "JIT compilation failed. [Op:__inference_train_3]", "XLA"),
    (
        "InvalidArgumentError",
        "Detected unsupported operations when trying to compile graph __inference_k_46"
        "[_XlaMustCompile=true,config_proto=1,executor_type=2] on XLA_GPU_JIT: AsString (No registered "
        "'AsString' OpKernel for XLA_GPU_JIT devices compatible with node {{node AsString}})",
        "XLA",
    ),
    # TensorFlow
    ("InternalError", "something that nobody has seen before", "TensorFlow"),
    ("UnknownError", "", "TensorFlow"),
]
LOST = [
    ("UnknownError", "Error invoking NCCL: remote process exited or there was a network error"),
    ("UnknownError", "Error invoking NCCL: unhandled system error (run with NCCL_DEBUG=INFO for details)"),
    (
        "UnavailableError",
        "Collective ops is aborted by: failed to connect to all addresses; last error: UNKNOWN: "
        "ipv4:10.0.0.2:2222: Failed to connect to remote host: Connection refused",
    ),
    (
        "UnavailableError",
        "Collective ops is aborted by: recvmsg:Connection reset by peer\nAdditional GRPC error information "
        "from remote target /job:worker/replica:0/task:1 while calling /tensorflow.WorkerService/RecvBuf:",
    ),
    ("UnavailableError", "Socket closed"),
    ("InternalError", "Received RST_STREAM with error code 2"),
    ("UnknownError", "Stream removed"),
    ("DeadlineExceededError", "Collective has timed out waiting for other workers."),
    ("DeadlineExceededError", "Deadline Exceeded"),
    (
        "FailedPreconditionError",
        "/job:worker/replica:0/task:1/device:CPU:0 current incarnation doesn't match with one in the group. "
        "This usually means this worker has restarted but the collective leader hasn't, or this worker "
        "connects to a wrong cluster.",
    ),
    (
        "InternalError",
        "RecvBuf expects a different device incarnation: 81 vs. 29. Your worker job was probably restarted.",
    ),
    (
        "UnavailableError",
        "Task /job:worker/replica:0/task:1 heartbeat timeout. This indicates that the remote task has "
        "failed, got preempted, or crashed unexpectedly.",
    ),
    ("AbortedError", "anything"),
    ("CancelledError", "Function was cancelled before it was started"),
]


def find_kind(error: Exception) -> str:
    """Returns the name of the row whose expectation and fix an error has."""
    assert isinstance(error, TrainingError)
    (name,) = {kind.name for kind in FAILURES if (kind.expected, kind.fix) == (error.expected, error.fix)}
    return name


@pytest.mark.parametrize(("type_name", "message", "name"), CASES)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_failure_of_the_run_itself_ends_it_with_its_cause(
    type_name: str, message: str, name: str, workers: int
) -> None:
    error = translate_failure(build_error(type_name, message), workers)
    assert find_kind(error) == name
    text = str(error)
    assert type_name in text
    assert "\n" not in text
    assert len(text) < 600
    for place in ("{{", "[[", "\x1b", "/job:", "File", "Hint", "[Op:"):
        assert place not in text


@pytest.mark.parametrize(("type_name", "message"), LOST)
def test_an_error_of_the_communication_is_a_lost_worker_only_if_there_are_others(
    type_name: str, message: str
) -> None:
    error = build_error(type_name, message)
    lost = translate_failure(error, workers=2)
    assert type(lost) is WorkerLostError
    assert type_name in str(lost)
    assert not isinstance(translate_failure(error, workers=1), WorkerLostError)


def test_every_row_of_the_table_has_a_message() -> None:
    names = {name for _, _, name in [*CASES, *RAY_CASES]}
    assert {kind.name for kind in FAILURES if not kind.is_peer} == names


def test_every_row_of_the_table_is_documented() -> None:
    table = (ROOT / "service" / "training" / "README.md").read_text()
    for kind in FAILURES:
        assert f"| {kind.name} |" in table


def test_the_line_that_names_the_cause_is_shown() -> None:
    (cause,) = list_causes(CASES[3][1])
    assert cause == (
        "OOM when allocating tensor with shape[16777216,1048576] and type float on device:CPU:0 by allocator "
        "mklcpu"
    )
    error = translate_failure(build_error("UnknownError", CASES[10][1]))
    assert "Out of memory while trying to allocate 4294967296 bytes" in str(error)


@pytest.mark.parametrize(
    "bug",
    [
        build_error("InvalidArgumentError", "Matrix size-incompatible: In[0]: [8,432], In[1]: [12,8]"),
        ZeroDivisionError("out of memory"),
        RuntimeError("CUDA_ERROR_OUT_OF_MEMORY"),
    ],
)
def test_a_bug_keeps_its_own_exception(bug: Exception) -> None:
    assert translate_failure(bug, workers=2) is bug
    with pytest.raises(type(bug)), translate_failures():
        raise bug


def test_memory_that_python_or_numpy_lacks_is_host_memory() -> None:
    for error in (MemoryError(), type("_ArrayMemoryError", (MemoryError,), {})("Unable to allocate 9 TiB")):
        assert find_kind(translate_failure(error)) == "host memory"
        with pytest.raises(TrainingError), translate_failures():
            raise error


def test_a_worker_that_ray_ends_for_lack_of_memory_is_not_restarted() -> None:
    message = (
        "The actor died.\n\tTask was killed due to the node running low on memory.\nMemory on the node: 9"
    )
    error = find_memory_failure(message)
    assert error is not None
    assert find_kind(error) == "host memory"
    assert find_memory_failure("The actor is dead because its node has died.") is None


KILLED = (
    "3 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.2) was 9\n"
    "OOM kill reason: Memory usage exceeded the threshold\nTop 10 memory users: PID\tMEM(GB)\tCOMMAND"
)
KILLED_ACTOR = "The actor died.\n\tTask was killed due to the node running low on memory."
RAY_CASES = [
    (["OutOfMemoryError", "RayError"], KILLED, "host memory"),
    (["OutOfMemoryError", "RayError"], "", "host memory"),
    (["ActorDiedError", "RayActorError", "RayError"], KILLED_ACTOR, "host memory"),
    (["ActorDiedError", "RayActorError", "RayError"], "The actor died.\n\tpid: 7", "Ray"),
    (["OutOfDiskError", "RayError"], "Local disk is full", "Ray"),
    (["RayError"], "", "Ray"),
]


def build_ray_error(types: list[str], message: str) -> Exception:
    """Returns an exception that looks like one of Ray, which is not imported here, with these types."""
    kind = Exception
    for name in reversed(types):
        kind = type(name, (kind,), {"__module__": "ray.exceptions"})
    return kind(message)


@pytest.mark.parametrize(("types", "message", "name"), RAY_CASES)
def test_the_death_of_a_process_of_ray_is_one_sentence(types: list[str], message: str, name: str) -> None:
    error = translate_failure(build_ray_error(types, message))
    assert find_kind(error) == name
    assert f"error={types[0]}: " in str(error)
    assert "\n" not in str(error)


def test_an_exception_that_ray_passes_on_from_a_task_keeps_its_traceback() -> None:
    error = build_ray_error(["RayTaskError(KeyError)", "RayTaskError", "RayError"], "running low on memory")
    assert translate_failure(error) is error


TOO_LARGE = """
import tensorflow as tf
from service.failures import translate_failure

@tf.function
def fill(rows):
    return tf.reduce_sum(tf.random.uniform([rows, 2**30]))

for compute in (lambda: tf.zeros([2**22, 2**22]), lambda: fill(tf.constant(2**24))):
    try:
        compute()
    except tf.errors.OpError as error:
        print(translate_failure(error))
"""


@pytest.mark.slow
@pytest.mark.heavy
def test_a_real_allocation_that_is_too_large_is_recognized() -> None:
    result = subprocess.run(
        [sys.executable, "-c", TOO_LARGE],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    lines = result.stdout.splitlines()
    assert len(lines) == 2, result.stderr
    for line in lines:
        assert line.startswith("Expected enough memory on this machine. Received: error=ResourceExhausted")

"""Reads and writes run directories. This module, `checkpoint.py` and `milestones.py` alone know their layout.

runs/<name>/config.yaml     configuration; files of the user are named as code/...
            metrics.jsonl   a line per epoch
            layers.jsonl    norms of weights and gradients per layer, a line per epoch
            data.json       class names, preprocessing, and digest of the shard set
            status.json     state, reason, timings, environment
            model.keras     the model of the best epoch
            checkpoints/    see service/checkpoint.py
            milestones/     see service/milestones.py
            code/           copies of the user's files, and manifest.json with their digests
            events/         TensorBoard
            report/         the page

On a store, the objects have the same names, see `service/mirror`. Hidden files are not part of the run:
locks, requests to stop, and in the local folder of a run on a store `.mirror.json`, a record of the uploads.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from pipelines.errors import ConfigError, DataError
from pipelines.storage import (
    hash_archive,
    hash_file,
    hash_json,
    hash_text,
    lock_file,
    read_bounded,
    replace_file,
    write_atomically,
)
from service.checkpoint_record import FILE_NAME as CHECKPOINT_RECORD
from service.checkpoint_record import PATTERN, CheckpointRecord, read_newest_record
from service.models.metadata import ModelMetadata, append_metadata, read_metadata
from service.run_files import (
    CodeManifest,
    build_line_error,
    compare_metrics,
    format_status,
    parse_metrics,
    read_layers,
    read_lines,
    read_object,
    read_status,
)
from service.user_code import CodeCopy, describe_entry_points, find_names, list_modules, replace_names
from service.yaml_text import parse_yaml

CONFIG = "config.yaml"
CODE = "code"
METRICS = "metrics.jsonl"
LAYERS = "layers.jsonl"
METADATA = "data.json"
STATUS = "status.json"
MODEL = "model.keras"
CHECKPOINTS = "checkpoints"
MILESTONES = "milestones"
EVENTS = "events"
REPORT = "report"
UNFINISHED_STATES = ("starting", "training")


class StoppedError(Exception):
    """Training was stopped early, after saving its state; the message is the reason."""


class Run:
    """One run directory.

    Args:
        path: The directory; it need not exist yet.

    Attributes:
        path: Absolute path of the directory.
        config_path: File with the configuration.
        metrics_path: Metrics, a line of JSON per epoch.
        layers_path: Norms of weights and gradients per layer, a line of JSON per epoch.
        metadata_path: Class names, preprocessing, and digest of the shard set.
        status_path: State, timings and environment.
        model_path: The model of the best epoch so far.
        events: Folder of TensorBoard events.
        profile: Folder of TensorFlow's profile, within that of the events.
        checkpoints: Folder of checkpoints, see `service.checkpoint`.
        milestones: Folder of the weights of a few epochs, see `service.milestones`.
        report: Folder of the report.
        code: Folder with copies of the user's files.
        ray_storage: Folder that Ray uses while the run is trained.
        report_lease_path: File with the lease of the process that renders the report.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self.config_path = self.path / CONFIG
        self.metrics_path = self.path / METRICS
        self.layers_path = self.path / LAYERS
        self.metadata_path = self.path / METADATA
        self.status_path = self.path / STATUS
        self.model_path = self.path / MODEL
        self.events = self.path / EVENTS
        self.profile = self.events / "profile"
        self.checkpoints = self.path / CHECKPOINTS
        self.milestones = self.path / MILESTONES
        self.report = self.path / REPORT
        self.code = self.path / CODE
        self.ray_storage = self.path / ".ray"
        self.report_lease_path = self.path / ".report.lock"
        self._code_manifest_path = self.code / "manifest.json"
        self._lock_path = self.path / ".lock"
        self._holder_path = self.path / ".holder"
        self._status_lock = threading.RLock()  # the mirror of a run on a store adds notices from its thread
        self._stop_path = self.path / ".stop"

    def create(self, config: dict[str, Any], notes: Sequence[str] = ()) -> None:
        """Creates the directory with its configuration and copies of the user's files that it names.

        A process that is killed meanwhile leaves nothing in the way of the next start.

        Args:
            config: Configuration as plain values.
            notes: Inferences about the user's code, to be recorded with it.

        Raises:
            ConfigError: The path exists already, cannot be written, or a file of the user cannot be copied.
        """
        self.check_free()
        has_place = self.path.exists()  # an empty directory, which may be a volume: it cannot be replaced
        place = self if has_place else Run(self.path.with_name(f".tmp-{secrets.token_hex(4)}"))
        try:
            place._fill(config, notes)
            if not has_place:
                # Unlike `replace_directory`, it fails if another process has created a run there meanwhile.
                os.rename(place.path, self.path)
        except OSError as error:
            raise ConfigError(
                "an output that can be written", f"out={self.path}: {error.strerror}", "choose another --out"
            ) from None
        except ConfigError:
            place.remove()
            raise
        finally:
            if not has_place:
                shutil.rmtree(place.path, ignore_errors=True)

    def _fill(self, config: dict[str, Any], notes: Sequence[str]) -> None:
        self.checkpoints.mkdir(parents=True)
        config_with_copies = self._copy_code(config, notes)
        write_atomically(self.config_path, yaml.safe_dump(config_with_copies, sort_keys=False))

    def _copy_code(self, config: dict[str, Any], notes: Sequence[str]) -> dict[str, Any]:
        """Copies the user's files and returns the configuration with the names of the copies."""
        names = find_names(config)
        copy = CodeCopy(self.code)
        copies = {name: copy.add(name) for name in names}
        installed = copy.installed | describe_entry_points(config)
        if not names and not installed:
            return config
        manifest = {
            "files": copy.hash_files(),
            "originals": {f"{CODE}/{stored}": name for stored, name in copy.originals.items()},
            "installed": installed,
            "notes": list(notes),
        }
        self.code.mkdir(exist_ok=True)
        write_atomically(self._code_manifest_path, json.dumps(manifest, indent=2) + "\n")
        new_names = {name: f"{CODE}/{stored}" for name, stored in copies.items() if stored is not None}
        config_with_copies: dict[str, Any] = replace_names(config, new_names)
        return config_with_copies

    def verify_code(self) -> None:
        """Checks that the copies of the user's files have not changed since the run was created.

        Raises:
            ConfigError: A file is missing or has changed; names the first one.
        """
        for name, digest in self._read_code_manifest().files.items():
            path = self.code / name
            if not path.is_file():
                received = f"file={path} (missing)"
            elif hash_file(path) != digest:
                received = f"file={path} (changed)"
            else:
                continue
            raise ConfigError(
                "the code that the run was created with", received, "restore the file, or start a new run"
            )

    def _read_code_manifest(self) -> CodeManifest:
        try:
            return CodeManifest.model_validate(read_object(self._code_manifest_path))
        except FileNotFoundError:
            return CodeManifest()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "damaged"
            raise ConfigError(
                "a list of the run's code in JSON",
                f"file={self._code_manifest_path} ({reason})",
                "restore the file, or start a new run",
            ) from None

    def custom_objects(self) -> tuple[str, ...]:
        """Returns the modules with the user's code of the run, in which `load_model` finds custom layers.

        Raises:
            ConfigError: The code has changed since the run was created.
        """
        self.verify_code()
        return list_modules(self.config())

    def code_notes(self) -> tuple[str, ...]:
        """Returns the inferences about the user's model that were recorded when the run was created."""
        return tuple(self._read_code_manifest().notes)

    def exists(self) -> bool:
        """Tells whether the directory holds a run."""
        return self.config_path.is_file()

    def has_checkpoints(self) -> bool:
        """Tells whether there is a checkpoint that training can resume from."""
        return any(self.checkpoints.glob(PATTERN))

    def has_model(self) -> bool:
        """Tells whether a model has been saved, even if its file cannot be read."""
        return os.path.lexists(self.model_path)

    def check_has_model(self) -> None:
        """Checks that the run has a saved model.

        Raises:
            ConfigError: The directory is not a run, its first epoch is not finished, or the model is that of
                another run.
        """
        self.config()
        if not self.has_model():
            raise ConfigError(
                "a run with a saved model",
                f"run={self.path} (not finished: no {self.model_path.name})",
                "wait until its first epoch ends, or resume it with 'glassbox train --resume'",
            )
        recorded = self.read_metadata()
        stored = read_metadata(self.model_path)
        if recorded and stored and (recorded.classes, recorded.data) != (stored.classes, stored.data):
            raise ConfigError(
                "the model that the run has trained",
                f"model={self.model_path} (of other data or classes than {METADATA} says)",
                "restore the file, or name the .keras file itself to use it as it is",
            )

    def remove(self) -> None:
        """Deletes the directory and everything in it."""
        shutil.rmtree(self.path)

    def remove_ray_storage(self) -> None:
        """Deletes the files that Ray wrote during training."""
        shutil.rmtree(self.ray_storage, ignore_errors=True)

    def check_free(self) -> None:
        """Checks that the path does not exist yet, or is an empty directory.

        Raises:
            ConfigError: A file, a run or a non-empty directory exists there.
        """
        if self.exists():
            fix = "continue it with 'glassbox train --resume', choose another --out or remove it"
            raise ConfigError("an output that does not exist yet", f"out={self.path} (a run)", fix)
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise ConfigError(
                "an output that does not exist yet", f"out={self.path}", "choose another --out or remove it"
            )

    @contextmanager
    def hold_lock(self) -> Iterator[None]:
        """Prevents other processes from training this run; the lock ends with the process, however it ends.

        Raises:
            ConfigError: Another process trains this run.
        """
        refusal = ConfigError(
            "a run that nobody is training", f"out={self.path}", "wait until it ends, or stop it"
        )
        with lock_file(self._lock_path, refusal):
            yield

    def _is_locked(self) -> bool:
        """Tells whether a process trains this run; holds the lock only for the duration of the check."""
        if not self._lock_path.is_file():
            return False
        try:
            with FileLock(self._lock_path, blocking=False, fallback_to_soft=False):
                return False
        except (Timeout, OSError):  # OSError: the file is read-only, so the state is unknown
            return True

    def record_holder(self, holder: str) -> None:
        """Records which host trains the run, in a copy of a run on a store, where no lock tells it.

        Args:
            holder: Name of the host; empty if nobody trains the run.
        """
        write_atomically(self._holder_path, holder, durable=False)

    def config(self) -> dict[str, Any]:
        """Returns the configuration of the run as plain values; names of the user's files are absolute paths.

        Raises:
            ConfigError: The directory is not a run, or its configuration is damaged.
        """
        if not self.exists():
            raise ConfigError(
                "a run directory", f"run={self.path} (no {CONFIG})", "name the --out of a 'glassbox train'"
            )
        try:
            stored = dict(parse_yaml(read_bounded(self.config_path).decode()))
        except (OSError, yaml.YAMLError, TypeError, ValueError) as error:
            reason = f"cannot be read: {error.strerror}" if isinstance(error, OSError) else "is damaged"
            raise ConfigError(
                "a configuration in YAML", f"run={self.path} ({CONFIG} {reason})", "start a new run"
            ) from None
        self._check_whole(stored)
        names = self._read_code_manifest().originals
        resolved: dict[str, Any] = replace_names(stored, {name: f"{self.path}/{name}" for name in names})
        return resolved

    def _check_whole(self, config: dict[str, Any]) -> None:
        """Checks that a configuration has all keys that the newest checkpoint recorded: none was cut off.

        Raises:
            ConfigError: A key is missing.
        """
        record = read_newest_record(self.checkpoints)
        missing = sorted(record.config.keys() - config.keys()) if record else []
        if missing:
            raise ConfigError(
                "a configuration with all keys",
                f"run={self.path} ({CONFIG} without {', '.join(missing)})",
                f"restore {CONFIG}; the newest {CHECKPOINTS}/*/{CHECKPOINT_RECORD} has the values",
            )

    def metrics(self) -> list[dict[str, float]]:
        """Returns the metrics of every finished epoch, oldest first.

        Keys: epoch (from 1), loss, accuracy, val_loss, val_accuracy (if there is a validation split),
        learning_rate, seconds, images_per_second, input_wait (share of the time, 0 to 1).

        The file is compared with the newest checkpoint, which records the same metrics under a digest. What
        is missing at its end is taken from there.

        Raises:
            DataError: A line is damaged, or differs from the checkpoint's.
        """
        lines = read_lines(self.metrics_path)
        record = read_newest_record(self.checkpoints)
        history = list(record.history) if record else []
        epochs = []
        for number, line in enumerate(lines, start=1):
            try:
                epochs.append(parse_metrics(line, number))
            except ValueError:
                if number == len(lines) and len(history) >= number:
                    return history
                fix = "restore the line, or start a new run"
                raise build_line_error(self.metrics_path, number, fix) from None
        differing = compare_metrics(epochs, history)
        if differing is not None:
            fix = f"restore the line from the history in the newest {CHECKPOINTS}/*/{CHECKPOINT_RECORD}"
            reason = "not what the checkpoint recorded"
            raise build_line_error(self.metrics_path, differing, fix, reason)
        # A checkpoint is written before its line of metrics; more lines than one were lost.
        return history if len(history) > len(epochs) + 1 else epochs

    def write_metrics(self, epochs: Sequence[dict[str, float]]) -> None:
        """Replaces the metrics by those of some epochs, a line each, atomically."""
        lines = [json.dumps(epoch, allow_nan=False) + "\n" for epoch in epochs]
        write_atomically(self.metrics_path, "".join(lines))

    def layers(self) -> list[dict[str, Any]]:
        """Returns the norms of weights and gradients per layer for every recorded epoch, oldest first.

        Keys: epoch (from 1), layers (of every trained layer by its path: `weights`, the norm of its weights
        at the end of the epoch, and `gradients`, the root mean square of the norm of its gradient over the
        updates). Runs of older versions have none.

        Raises:
            DataError: A line is damaged.
        """
        record = read_newest_record(self.checkpoints)
        if record and record.layers and not self._has_layers_of(record):
            raise DataError(
                "the norms of layers that the checkpoint recorded",
                f"file={self.layers_path} (others)",
                "restore the file, or remove it: reports do without it",
            )
        return read_layers(self.layers_path)

    def _has_layers_of(self, record: CheckpointRecord) -> bool:
        """Tells whether the norms of layers are those that a checkpoint recorded, or were removed."""
        if not self.layers_path.exists():
            return True
        # Resumed before this checkpoint, because its arrays are damaged, a run has fewer epochs for a while.
        epochs = min(record.epoch, len(read_lines(self.metrics_path)))
        if epochs < record.epoch:
            return len(read_lines(self.layers_path)) >= epochs
        return self.hash_layers(epochs) == record.layers

    def hash_layers(self, epochs: int) -> str | None:
        """Returns a digest of the norms of layers for the first epochs; None if there is no file of them.

        Args:
            epochs: Number of epochs.
        """
        if not self.layers_path.exists():
            return None
        lines = read_lines(self.layers_path)[:epochs]
        return hash_json(lines)

    def write_layers(self, epoch: int, layers: dict[str, dict[str, float]]) -> None:
        """Adds the norms of an epoch, in place of those of the same and of later epochs, atomically.

        Args:
            epoch: The epoch, from 1.
            layers: Norms of every layer, see `layers`.
        """
        self._write_layers([*self._layers_until(epoch - 1), {"epoch": epoch, "layers": layers}])

    def remove_layers(self, after: int) -> None:
        """Removes the norms of all epochs after one, which are trained again."""
        if self.layers_path.is_file():
            self._write_layers(self._layers_until(after))

    def _layers_until(self, epoch: int) -> list[dict[str, Any]]:
        return [record for record in read_layers(self.layers_path) if record["epoch"] <= epoch]

    def _write_layers(self, records: Sequence[dict[str, Any]]) -> None:
        lines = [json.dumps(record, separators=(",", ":")) + "\n" for record in records]
        write_atomically(self.layers_path, "".join(lines))

    def request_stop(self, reason: str) -> None:
        """Requests that the workers save a checkpoint and stop."""
        # Atomic, so that no reader sees a request without its reason.
        write_atomically(self._stop_path, reason, durable=False)

    def withdraw_stop(self) -> None:
        """Withdraws the request to stop."""
        self._stop_path.unlink(missing_ok=True)

    def stop_requested(self) -> str | None:
        """Returns the reason of a request to stop; None if there is no request."""
        try:
            return self._stop_path.read_text()
        except OSError:
            return None

    def notice(self, text: str) -> None:
        """Adds a sentence to the notices, each of which is shown to the user once during training."""
        with self._status_lock:
            self.update_status(notices=[*self.status().get("notices", []), text])

    def status(self) -> dict[str, Any]:
        """Returns the recorded state of the run; empty before it started, or if the file is damaged.

        Keys: state ("starting", "training", "finished", "interrupted", "failed"), reason, progress, caches,
        notices, timings (seconds), environment, store (bytes, hit rate and seconds, for shards on a store).
        """
        return read_status(self.status_path)

    def state(self) -> str:
        """Returns the state in the status, or "interrupted" if this machine trained the run and was killed.

        A killed process cannot record its end, but its lock is released. Other machines may not see the lock.
        """
        status = self.status()
        state = str(status.get("state", ""))
        if state not in UNFINISHED_STATES:
            return state
        if self._holder_path.is_file():  # a copy of a run on a store
            is_trained = self._holder_path.read_text() != ""
        else:
            is_local = status.get("environment", {}).get("host") == platform.node()
            is_trained = not is_local or self._is_locked()
        return state if is_trained else "interrupted"

    def update_status(self, **changes: Any) -> None:
        """Changes entries of the status. One process at a time: the driver before and after the worker.

        It is not flushed to disk, because training must not wait for it.
        """
        with self._status_lock:
            write_atomically(self.status_path, format_status(self.status() | changes), durable=False)

    def add_timings(self, **seconds: float) -> None:
        """Adds the seconds that some phases took to the timings in the status."""
        with self._status_lock:
            self.update_status(timings=self.status().get("timings", {}) | seconds)

    def write_metadata(self, metadata: ModelMetadata) -> None:
        """Records the classes, the preprocessing and the data of the run, before its first model is saved."""
        write_atomically(self.metadata_path, metadata.to_json())

    def read_metadata(self) -> ModelMetadata | None:
        """Returns the recorded classes, preprocessing and data; None for runs of older versions.

        Raises:
            ConfigError: The file is damaged.
        """
        try:
            return ModelMetadata.from_json(read_bounded(self.metadata_path), str(self.metadata_path))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(
                "metadata of a model in JSON", f"{self.metadata_path} ({reason})", "restore the file"
            ) from None

    def read_data_digest(self) -> str | None:
        """Returns the digest of the shard set that the run was trained on; None if it is not recorded.

        Runs of older versions recorded it in their checkpoints only.
        """
        metadata = self.read_metadata()
        if metadata is not None:
            return metadata.data
        record = read_newest_record(self.checkpoints)
        return record.data if record else None

    def check_data(self, shards: str | Path, digest: str) -> None:
        """Checks that the shard set that the configuration names is still the one the run was trained on.

        Args:
            shards: Directory of the shard set.
            digest: Digest of the manifest that is there now.

        Raises:
            ConfigError: Another shard set is there.
        """
        expected = self.read_data_digest()
        if expected is not None and expected != digest:
            raise ConfigError(
                "the shard set the run was trained on",
                f"shards={shards} (another one is there now)",
                "put the old shards back, or name the shard set to use with --data",
            )

    def write_model(self, save: Callable[[Path], None]) -> None:
        """Replaces the model file atomically; the metadata of the run, if recorded, becomes part of it.

        Args:
            save: Saves a model to a path that ends in `.keras`.
        """
        metadata = self.read_metadata()
        with replace_file(self.model_path) as temporary:
            save(temporary)
            if metadata is not None:
                append_metadata(temporary, metadata)

    def append_rows(self, rank: int, lines: Sequence[str]) -> None:
        """Appends to the log of rows that a worker has trained on, see `service.training.telemetry.RowLog`.

        Args:
            rank: Rank of the worker.
            lines: Lines without their ends.
        """
        with (self.path / f"rows-{rank}.log").open("a") as file:
            file.writelines(f"{line}\n" for line in lines)

    def hash_contents(self) -> dict[str, Any]:
        """Returns digests of everything in the directory that a report depends on, by name.

        Milestones are not listed, because they change only when the metrics do.

        Raises:
            DataError: A file is larger than it can be; it is not read.
            OSError: The model or the configuration does not exist.
        """
        status = self.status()
        reported = {key: status.get(key) for key in ("state", "finished", "timings", "environment")}
        records = sorted(self.checkpoints.glob(f"{PATTERN}/{CHECKPOINT_RECORD}"))
        return {
            "model": _compute_digest(self.model_path, hash_archive),
            "checkpoints": hash_json([[path.parent.name, _hash_record(path)] for path in records]),
            "config": _compute_digest(self.config_path, hash_text),
            "metadata": _hash_optional(self.metadata_path),
            "metrics": _hash_optional(self.metrics_path),
            "layers": _hash_optional(self.layers_path),
            "status": hash_json(reported),
        }


def _compute_digest(path: Path, compute: Callable[[Path], str]) -> str:
    """Computes the digest of a file of a run.

    Raises:
        DataError: The size of the file is not plausible.
        OSError: The file cannot be read.
    """
    try:
        return compute(path)
    except ValueError as error:
        raise DataError("a file as training wrote it", f"file={path} ({error})", "restore the file") from None


def _hash_optional(path: Path) -> str | None:
    """Computes the digest of a text file; None if there is no such file."""
    return _compute_digest(path, hash_text) if path.is_file() else None


def _hash_record(path: Path) -> str | None:
    """Computes the digest of the record of a checkpoint; None for one that is too large, as if damaged."""
    try:
        return hash_text(path)
    except ValueError:
        return None


def find_runs(root: Path) -> Iterator[Run]:
    """Finds the run directories below a directory, sorted; skips hidden directories and the inside of runs.

    Args:
        root: Directory to search.
    """
    for folder, subfolders, files in os.walk(root):
        if CONFIG in files:
            subfolders.clear()
            yield Run(folder)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))


def score(metrics: dict[str, float], history: Sequence[dict[str, float]] = ()) -> float:
    """Computes the score by which the best epoch is chosen: validation accuracy, else training accuracy.

    Args:
        metrics: Metrics of one epoch.
        history: Metrics of all epochs; if some of them were evaluated, all others score -1.
    """
    if "val_accuracy" in metrics:
        return metrics["val_accuracy"]
    was_evaluated = any("val_accuracy" in other for other in history)
    return -1.0 if was_evaluated else metrics["accuracy"]

"""The configuration of a run: a preset and `key=value` overrides, composed into one validated `RunConfig`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationInfo, field_validator

from pipelines.augment.decoded_crop import check_crop_cache
from pipelines.errors import ConfigError, name_multiples, suggest
from pipelines.plugins import is_reference, reference_file
from pipelines.remote.files import is_file, read_file, resolve_location
from pipelines.remote.uri import Location, is_uri, parse_location
from pipelines.spec import AugmentSpec, DataSpec, Fraction, Positive, Ratio, Spec, check
from service.pretrained import BASES, IMAGENET, KERAS_SUFFIX, NONE, SAVED, is_weights_file
from service.recipe import (
    ClassWeights,
    EarlyStoppingSpec,
    Inside,
    OptimizerSpec,
    Patterns,
    ScheduleSpec,
    StageSpec,
    validate_class_weights,
)
from service.runs import CONFIG, Run
from service.user_code import build_code_error
from service.yaml_text import parse_yaml

PRESETS = Path(__file__).parent / "presets"
MAX_YAML_BYTES = 2**24  # of an object that is read as a preset


class RunConfig(Spec):
    """Configuration of a run, as stored in `config.yaml`.

    Attributes:
        preset: Name of the preset that the run started from.
        shards: Path or URI of the shard set.
        model: A registered name, `file.py:function`, `package.module:function`, or path or URI of a
            `file.keras`, see `service.models`.
        model_options: Options of a model of this package by name, such as `{stochastic_depth: 0.05}` of
            `resnet50`.
        weights: First weights: `none` for fresh ones; `imagenet`, for the bases that Keras has trained;
            `saved`, for those in the file of `model=file.keras`; or path or URI of a file (see
            `service.models.weights`).
        custom_objects: Modules that define custom layers of a `.keras` file: `package.module` or `file.py`.
        data: How images become batches.
        augment: Random changes of training images; None for no augmentation.
        optimizer: How weights are updated.
        schedule: How the learning rate changes over the updates.
        global_batch: Images per step, over all replicas.
        epochs: Passes over the training split.
        stages: Consecutive parts of the run with different settings; their epochs add up to `epochs`. A run
            without stages is a single stage.
        freeze: Patterns of layers that are not trained (see `service.training.optimizers`).
        loss: `cross_entropy`, of a softmax over all classes; or `bce`, the mean over all classes of the
            binary cross-entropy with each, for which both labels of a mixed image can be true.
        bce_threshold: Share of a label above which its target is 1 in `bce`, and 0 below; None for the share
            itself.
        label_smoothing: Share of every label that is spread evenly over all classes.
        class_weights: Factors on the loss by class name, or `balanced` for equal total weight of all classes;
            None for no weights.
        accumulate: Batches whose gradients are summed for one update.
        ema: Decay per update of the moving average of the weights, after a warmup; the averaged weights are
            evaluated and saved. None for no average.
        early_stopping: Condition to stop before the last epoch, checked during the last stage only; None for
            no early stopping.
        evaluate_every: Epochs between evaluations.
        seed: Seed of the initial weights, the order, the augmentation and the dropout.
        precision: What layers compute in; weights, logits and loss stay float32. float16 uses loss scaling.
        xla: Whether forward and backward pass are compiled; `auto` compiles if there is a GPU.
        batch_norm: `averaged`: moving statistics of the replicas are averaged before they are used.
            `synchronized`: each batch is normalized over all replicas (not with XLA).
        precise_batch_norm: Training images, without augmentation, over which batch-norm statistics are
            recomputed for every evaluation; these statistics are evaluated and saved. None for the moving
            statistics of training.
        steps_per_call: Updates per call of the compiled graph; `auto` aims at a quarter of a second.
        on_nan: Whether a gradient that is not finite stops the run (`stop`), or the update is skipped on all
            replicas (`skip`).
        keep_checkpoints: Number of newest checkpoints that are kept, in addition to that of the best epoch,
            and to the weights alone of the first epoch and of two in the middle (`service.milestones`).
        checkpoint_minutes: Minutes between checkpoints within an epoch; None for checkpoints only at the ends
            of epochs.
        profile: Whether to record a TensorFlow profile of updates 10 to 19 of an epoch.
        deterministic: Whether GPUs give the same bits in every run, which costs speed: deterministic kernels
            of TensorFlow and XLA, without autotuning and without TF32. CPUs do so in any case.
    """

    preset: str
    shards: str
    model: str
    model_options: dict[str, bool | int | float | str] = Field(default_factory=dict)
    weights: Annotated[str, Field(min_length=1)] = NONE
    custom_objects: Patterns = ()
    data: DataSpec = DataSpec()
    augment: AugmentSpec | None = None
    optimizer: OptimizerSpec = OptimizerSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    global_batch: Positive = 32
    epochs: Positive = 10
    stages: tuple[StageSpec, ...] = ()
    freeze: Patterns = ()
    loss: Literal["cross_entropy", "bce"] = "cross_entropy"
    bce_threshold: Inside | None = None
    label_smoothing: Fraction = 0.0
    class_weights: ClassWeights = None
    accumulate: Positive = 1
    ema: Inside | None = None
    early_stopping: EarlyStoppingSpec | None = None
    evaluate_every: Positive = 1
    seed: Annotated[int, Field(ge=0, lt=2**32, strict=True)] = 0
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    xla: Literal["auto", "on", "off"] = "auto"
    batch_norm: Literal["averaged", "synchronized"] = "averaged"
    precise_batch_norm: Positive | None = None
    steps_per_call: Literal["auto"] | Positive = "auto"
    on_nan: Literal["stop", "skip"] = "stop"
    keep_checkpoints: Positive = 2
    checkpoint_minutes: Ratio | None = 10.0
    profile: bool = False
    deterministic: bool = False

    @property
    def images_per_update(self) -> int:
        """Images whose gradients make up one update, over all replicas."""
        return self.global_batch * self.accumulate

    @field_validator("weights")
    @classmethod
    def _validate_weights(cls, value: str, info: ValidationInfo) -> str:
        model = str(info.data.get("model"))
        if value == IMAGENET and model not in BASES:
            raise ValueError(f"imagenet goes with {', '.join(BASES)} alone, not with {model}")
        if value == SAVED and not model.endswith(KERAS_SUFFIX):
            raise ValueError(f"saved goes with model=file.keras alone, not with {model}")
        return value

    @field_validator("augment")
    @classmethod
    def _validate_augment(cls, value: AugmentSpec | None, info: ValidationInfo) -> AugmentSpec | None:
        check_crop_cache(value, info.data.get("data", DataSpec()))
        return value

    @field_validator("global_batch")
    @classmethod
    def _validate_global_batch(cls, value: int, info: ValidationInfo) -> int:
        lanes = info.data["data"].lanes if "data" in info.data else 1
        if value % lanes:
            sizes = name_multiples(value, lanes)
            raise ValueError(f"data.lanes={lanes} does not divide it: use global_batch={sizes}")
        return value

    @field_validator("bce_threshold")
    @classmethod
    def _validate_bce_threshold(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("loss") != "bce":
            raise ValueError("the threshold goes with loss=bce alone")
        return value

    @field_validator("class_weights", mode="before")
    @classmethod
    def _validate_class_weights(cls, value: Any) -> Any:
        return validate_class_weights(value)

    @field_validator("stages")
    @classmethod
    def _validate_stages(cls, value: tuple[StageSpec, ...], info: ValidationInfo) -> tuple[StageSpec, ...]:
        total = sum(stage.epochs for stage in value)
        if value and total != info.data.get("epochs", total):
            raise ValueError(
                f"the epochs of the stages add up to {total}: set epochs={total}, not {info.data['epochs']}"
            )
        return value

    @field_validator("precision")
    @classmethod
    def _validate_precision(cls, value: str, info: ValidationInfo) -> str:
        model = str(info.data.get("model"))
        if value != "float32" and model.endswith(KERAS_SUFFIX):
            raise ValueError(
                "layers of a .keras file keep their own precision: leave precision out, or build the model "
                "in a function"
            )
        return value

    @field_validator("xla", mode="before")
    @classmethod
    def _read_yaml_switch(cls, value: Any) -> Any:
        """Accepts a bare `on` or `off`, which YAML reads as a boolean."""
        if isinstance(value, bool):
            return "on" if value else "off"
        return value


def preset_names() -> tuple[str, ...]:
    """Returns the names of the presets of this package, sorted."""
    return tuple(sorted(path.stem for path in PRESETS.glob("*.yaml")))


def preset_comment(name: str) -> str:
    """Returns the comment at the top of a preset: what it trains and the result to expect."""
    comment = []
    for line in (PRESETS / f"{name}.yaml").read_text().splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.removeprefix("#").strip())
    return "\n".join(comment)


def load_config(preset: str, shards: str | Location, overrides: list[str] | None = None) -> RunConfig:
    """Composes the configuration of a run.

    Args:
        preset: Name of a preset, or path or URI of a YAML file of the same form.
        shards: Path or URI of the shard set.
        overrides: `key=value` settings; dots reach into groups (`optimizer.learning_rate=0.01`).

    Raises:
        ConfigError: The preset or a key is unknown, or a value has the wrong type.
    """
    name, settings = read_preset(preset)
    for override in overrides or []:
        set_value(settings, override)
    return build_config(name, settings, shards, "the preset or the command line")


def load_run_config(run: Run) -> RunConfig:
    """Loads the configuration of a run. References to user code point into the run directory.

    Raises:
        ConfigError: The directory is not a run, its configuration is damaged, or a copy of user code has
            changed.
    """
    run.verify_code()
    return check(RunConfig, run.config(), str(run.config_path))


def read_preset(preset: str) -> tuple[str, dict[str, Any]]:
    """Reads name and settings of a preset.

    Args:
        preset: Name of a preset, or path or URI of a YAML file of the same form, such as the `config.yaml` of
            a run.

    Raises:
        ConfigError: There is no such preset, or it is not valid YAML.
    """
    is_path = is_uri(preset) or preset.endswith((".yaml", ".yml"))
    path = parse_location(preset) if is_path else PRESETS / f"{preset}.yaml"
    if not is_file(path):
        raise ConfigError(
            "a known preset or a YAML file", f"preset={preset}", suggest(preset, preset_names())
        )
    if path.name == CONFIG:
        return path.stem, _open_run(path.parent).config()
    return path.stem, read_yaml(path, "preset")


def _open_run(location: Location) -> Run:
    """Opens a run directory, or fetches the configuration and the code of a run on a store."""
    if isinstance(location, Path):
        return Run(location)

    from service.mirror.fetch import fetch_run

    return fetch_run(location, ("config",))


def build_config(preset: str, settings: dict[str, Any], shards: str | Location, source: str) -> RunConfig:
    """Builds and validates the configuration of a run.

    Args:
        preset: Name of the preset that the settings come from.
        settings: Settings by key, groups nested.
        shards: Path or URI of the shard set.
        source: Where the settings were written, for the error message.

    Raises:
        ConfigError: A key is unknown, or a value has the wrong type.
    """
    settings = make_paths_absolute(settings)
    settings |= {"preset": preset, "shards": str(resolve_location(shards))}
    return check(RunConfig, settings, source)


def make_paths_absolute(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns settings in which files and folders of user code are absolute paths. URIs stay as they are.

    Args:
        settings: Settings by key, groups nested.

    Raises:
        ConfigError: A URI has an unknown scheme, or names code.
    """
    settings = dict(settings)
    if isinstance(settings.get("model"), str):
        settings["model"] = _make_absolute(settings["model"])
    weights = str(settings.get("weights", NONE))
    if is_weights_file(weights):
        settings["weights"] = _make_absolute(weights, is_path=True)
    modules = settings.get("custom_objects")
    if isinstance(modules, str):
        modules = [modules]
    if isinstance(modules, list):
        settings["custom_objects"] = [_make_absolute(str(name)) for name in modules]
    data = settings.get("data")
    if isinstance(data, dict) and isinstance(data.get("mix"), dict):
        mix = {str(resolve_location(str(name))): weight for name, weight in data["mix"].items()}
        settings["data"] = data | {"mix": mix}
    if isinstance(settings.get("augment"), dict):
        augment = settings["augment"]
        settings["augment"] = {_make_absolute(str(key)): value for key, value in augment.items()}
    return settings


def _make_absolute(name: str, is_path: bool = False) -> str:
    """Makes the path in the name of a file or of user code absolute; returns other names unchanged.

    Raises:
        ConfigError: The name is a URI of an unknown scheme, or of code: a run executes only local code.
    """
    if is_uri(name):
        location = parse_location(name)
        if ".py" in location.name:
            raise build_code_error(location)
        return str(location)
    is_path = is_path or name.endswith((".py", KERAS_SUFFIX)) or reference_file(name) is not None
    is_in_folder = "/" in name and is_reference(name)
    if is_path or is_in_folder:
        return str(Path(name).expanduser().absolute())
    return name


class _Loader(yaml.SafeLoader):
    """Reads `1e-4` as a number; YAML 1.1 requires a dot in it."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


class _ValueLoader(_Loader):
    """Reads values of the command line, where `*` is an ordinary character: the shell removes quotes."""

    def fetch_alias(self) -> None:
        self.fetch_plain()


def _construct_text(loader: _ValueLoader, node: yaml.ScalarNode) -> str:
    return str(loader.construct_scalar(node))


# YAML 1.1 resolves a lone `*` to this tag.
_ValueLoader.add_constructor("tag:yaml.org,2002:yaml", _construct_text)


def read_yaml(path: Location, name: str) -> dict[str, Any]:
    """Reads a YAML file of keys and values.

    Args:
        path: Path or URI of the file.
        name: What the file is, for the error message.

    Raises:
        ConfigError: The file is not valid YAML, or does not hold keys and values.
    """
    try:
        settings = parse_yaml(read_file(path, MAX_YAML_BYTES).decode(), _Loader)
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ConfigError("a YAML file", f"{name}={path}: {reason}", "correct its syntax") from None
    if not isinstance(settings, dict):
        raise ConfigError(
            "a YAML file with keys and values", f"{name}={path}", "see 'glassbox presets' for examples"
        )
    return settings


def set_value(settings: dict[str, Any], override: str) -> None:
    """Writes a `key=value` override into nested settings.

    Args:
        settings: Settings to change.
        override: Key and value; the value is YAML, in which `*` is an ordinary character.

    Raises:
        ConfigError: The override is not of this form, or its key is not a setting.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError("an override as key=value", f"override={override}", "write for example epochs=5")
    if key in ("preset", "shards"):
        raise ConfigError("a setting of the run", f"override={override}", "use --preset and --data")
    try:
        put(settings, key, _read_value(text))
    except yaml.YAMLError:
        raise ConfigError(
            "a value in YAML", f"{key}={text}", "quote it, or write a plain number or word"
        ) from None


def put(settings: dict[str, Any], key: str, value: Any) -> None:
    """Writes a value into nested settings.

    Args:
        settings: Settings to change.
        key: Key of the value; dots reach into groups, which are created if they are missing.
        value: Value as parsed from YAML.
    """
    *groups, last = _split_key(key)
    for group in groups:
        inner = settings.get(group)
        settings[group] = inner if isinstance(inner, dict) else {}
        settings = settings[group]
    settings[last] = value


def _split_key(key: str) -> list[str]:
    """Splits a key at its dots, except for those of a reference, as in `augment.my/blur.py:Blur.radius`."""
    head, colon, tail = key.partition(":")
    if not colon:
        return key.split(".")
    group, _, path = head.partition(".")
    attribute, *rest = tail.split(".")
    return [group, f"{path}:{attribute}", *rest]


def _read_value(text: str) -> Any:
    """Reads a number as people write it, else YAML, where `1e-4` is text, `010` is 8 and `0x5` is 5."""
    if re.fullmatch(r"\d+x\d+", text):
        return text  # an image size
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return parse_yaml(text, _ValueLoader)

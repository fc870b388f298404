"""What a run is: a preset, composed with `key=value` overrides into one checked `RunConfig`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationInfo, field_validator

from pipelines.errors import ConfigError, suggest
from pipelines.spec import AugmentSpec, DataSpec, Fraction, Positive, Ratio, Spec, check
from service.pretrained import BASES, IMAGENET, NONE
from service.recipe import (
    ClassWeights,
    EarlyStoppingSpec,
    Inside,
    OptimizerSpec,
    Patterns,
    ScheduleSpec,
    StageSpec,
    check_class_weights,
)

PRESETS = Path(__file__).parent / "presets"


class RunConfig(Spec):
    """Everything a run depends on, as it is kept in `config.yaml`.

    Attributes:
        preset: The preset it started from.
        shards: Directory of the shard set.
        model: A registered model.
        weights: What it begins with: `none`, fresh ones; `imagenet`, for the bases that Keras has trained; or a file (see
            `service.models.weights`).
        data: How images become batches.
        augment: Random changes to training images; None for none.
        optimizer: How weights are updated.
        schedule: How the learning rate goes over the updates.
        global_batch: Images per step, over all replicas.
        epochs: Passes over the training split.
        stages: Parts of the run with settings of their own; their epochs add up to `epochs`. Without any the run is one stage.
        freeze: Patterns of layers that do not learn (see `service.training.optimizers`).
        label_smoothing: Share of every label that is spread evenly over all classes.
        class_weights: Factors on the loss by class name, or `balanced`: all classes weigh the same; None for none.
        accumulate: Batches whose gradients make one update.
        ema: Decay per update of the moving average of the weights, less at first; what is evaluated and saved has those. None for none.
        early_stopping: When to end before the last epoch, judged from the start of the last stage; None for never.
        evaluate_every: Epochs from one evaluation to the next.
        seed: Decides the initial weights, the order, the augmentation and the dropout.
        precision: What layers compute in; weights, logits and loss stay float32. float16 scales the loss.
        xla: Compile forward and backward; `auto` does where there is a GPU.
        batch_norm: Moving statistics of several replicas are `averaged` before they are used, or each batch is normalised over all
            of them (`synchronized`, not with XLA).
        precise_batch_norm: Training images over which the statistics are measured anew for every evaluation, without augmentation; what
            is evaluated, and saved then, has those. None for the moving statistics of training.
        steps_per_call: Updates in one call of the compiled graph; `auto` fits them to a quarter of a second.
        on_nan: What a gradient that is not finite does: `stop` the run, or `skip` the update, everywhere alike.
        keep_checkpoints: How many of the newest checkpoints stay, beside that of the best epoch.
        checkpoint_minutes: Between checkpoints within an epoch; None for epochs alone.
        profile: Take a TensorFlow profile of updates 10 to 19, or of the part of them in the same epoch as the tenth.
    """

    preset: str
    shards: str
    model: str
    weights: Annotated[str, Field(min_length=1)] = NONE
    data: DataSpec = DataSpec()
    augment: AugmentSpec | None = None
    optimizer: OptimizerSpec = OptimizerSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    global_batch: Positive = 32
    epochs: Positive = 10
    stages: tuple[StageSpec, ...] = ()
    freeze: Patterns = ()
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

    @field_validator("weights")
    @classmethod
    def _published_for_bases(cls, value: str, info: ValidationInfo) -> str:
        if value == IMAGENET and info.data.get("model") not in BASES:
            raise ValueError(
                f"imagenet goes with {', '.join(BASES)} alone, not with {info.data.get('model')}"
            )
        return value

    @field_validator("class_weights", mode="before")
    @classmethod
    def _weights_by_name(cls, value: Any) -> Any:
        return check_class_weights(value)

    @field_validator("stages")
    @classmethod
    def _stages_make_the_run(
        cls, value: tuple[StageSpec, ...], info: ValidationInfo
    ) -> tuple[StageSpec, ...]:
        total = sum(stage.epochs for stage in value)
        if value and total != info.data.get("epochs", total):
            raise ValueError(
                f"the epochs of the stages add up to {total}: set epochs={total}, not {info.data['epochs']}"
            )
        return value

    @field_validator("xla", mode="before")
    @classmethod
    def _yaml_switch(cls, value: Any) -> Any:
        """YAML reads a bare `on` or `off` as a truth value."""
        return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


def preset_names() -> tuple[str, ...]:
    """The presets that come with the project, sorted."""
    return tuple(sorted(path.stem for path in PRESETS.glob("*.yaml")))


def preset_comment(name: str) -> str:
    """The comment at the head of a preset: what it is and what result it gives."""
    lines = (PRESETS / f"{name}.yaml").read_text().splitlines()
    head = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    return "\n".join(line.removeprefix("#").strip() for line in head)


def load_config(preset: str, shards: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """Composes a run's configuration.

    Args:
        preset: Name of a preset, or the path of a YAML file of the same form.
        shards: Directory of the shard set.
        overrides: `key=value` settings; dots reach into groups (`optimizer.learning_rate=0.01`).

    Raises:
        ConfigError: Unknown preset or key, or a value of the wrong type.
    """
    name, settings = read_preset(preset)
    for override in overrides or []:
        set_value(settings, override)
    return configured(name, settings, shards, "the preset or the command line")


def read_preset(preset: str) -> tuple[str, dict[str, Any]]:
    """Name and settings of a preset.

    Args:
        preset: Its name, or the path of a YAML file of the same form.

    Raises:
        ConfigError: There is no such preset, or it is no YAML.
    """
    path = Path(preset) if preset.endswith((".yaml", ".yml")) else PRESETS / f"{preset}.yaml"
    if not path.is_file():
        raise ConfigError(
            "a known preset or a YAML file", f"preset={preset}", suggest(preset, preset_names())
        )
    return path.stem, read_yaml(path, "preset")


def configured(preset: str, settings: dict[str, Any], shards: str | Path, where: str) -> RunConfig:
    """Checks settings as those of a run.

    Args:
        preset: Name of the preset they come from.
        settings: Groups nested.
        shards: Directory of the shard set.
        where: Where they were written, for the error message.

    Raises:
        ConfigError: Unknown key, or a value of the wrong type.
    """
    settings = settings | {"preset": preset, "shards": str(Path(shards).absolute())}
    if settings.get("weights", NONE) not in (NONE, IMAGENET):
        settings["weights"] = str(Path(str(settings["weights"])).absolute())
    return check(RunConfig, settings, where)


class _Loader(yaml.SafeLoader):
    """Reads `1e-4` as the number that is meant; YAML 1.1 wants a dot in it."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_yaml(path: Path, name: str) -> dict[str, Any]:
    """A YAML file of keys and values.

    Args:
        path: The file.
        name: What it is, for the error message.

    Raises:
        ConfigError: It is none.
    """
    try:
        settings = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            "a YAML file", f"{name}={path}: {' '.join(str(error).split())}", "correct its syntax"
        ) from None
    if not isinstance(settings, dict):
        raise ConfigError(
            "a YAML file with keys and values", f"{name}={path}", "see 'glassbox presets' for examples"
        )
    return settings


def set_value(settings: dict[str, Any], override: str) -> None:
    """Writes a `key=value` override into nested settings.

    Raises:
        ConfigError: It is not written like that, or is not for settings.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError("an override as key=value", f"override={override}", "write for example epochs=5")
    if key in ("preset", "shards"):
        raise ConfigError("a setting of the run", f"override={override}", "use --preset and --data")
    try:
        put(settings, key, _number(text))
    except yaml.YAMLError:
        raise ConfigError(
            "a value in YAML", f"{key}={text}", "quote it, or write a plain number or word"
        ) from None


def put(settings: dict[str, Any], key: str, value: Any) -> None:
    """Writes a value into nested settings; dots in the key reach into groups."""
    *groups, last = key.split(".")
    for group in groups:
        inner = settings.get(group)
        settings[group] = inner if isinstance(inner, dict) else {}
        settings = settings[group]
    settings[last] = value


def _number(text: str) -> Any:
    """A value as a person means it: YAML reads `1e-4` as text, for want of a dot, and `010` as 8."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return yaml.load(text, Loader=_Loader)

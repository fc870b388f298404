"""What a run is: a preset, composed with `key=value` overrides into one checked `RunConfig`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationInfo, field_validator

from pipelines.errors import ConfigError
from pipelines.registry import suggest
from pipelines.spec import AugmentSpec, DataSpec, Fraction, Positive, Spec, check

PRESETS = Path(__file__).parent / "presets"


class OptimizerSpec(Spec):
    """How weights are updated.

    Attributes:
        name: The Keras optimizer.
        learning_rate: Its step size.
        momentum: Momentum, for `sgd` alone.
    """

    name: Literal["adam", "rmsprop", "sgd"] = "adam"
    learning_rate: Annotated[float, Field(gt=0.0, strict=True)] = 1e-3
    momentum: Fraction = 0.0

    @field_validator("momentum")
    @classmethod
    def _momentum_of_sgd(cls, value: float, info: ValidationInfo) -> float:
        if value and info.data.get("name") != "sgd":
            raise ValueError("momentum goes with the optimizer sgd alone")
        return value


class RunConfig(Spec):
    """Everything a run depends on, as it is kept in `config.yaml`.

    Attributes:
        preset: The preset it started from.
        shards: Directory of the shard set.
        model: A registered model.
        data: How images become batches.
        augment: Random changes to training images; None for none.
        optimizer: How weights are updated.
        global_batch: Images per step, over all replicas.
        epochs: Passes over the training split.
        seed: Decides the initial weights, the order, the augmentation and the dropout.
        xla: Compile forward and backward; `auto` does where there is a GPU.
        keep_checkpoints: How many of the newest checkpoints stay.
    """

    preset: str
    shards: str
    model: str
    data: DataSpec = DataSpec()
    augment: AugmentSpec | None = None
    optimizer: OptimizerSpec = OptimizerSpec()
    global_batch: Positive = 32
    epochs: Positive = 10
    seed: Annotated[int, Field(ge=0, lt=2**32, strict=True)] = 0
    xla: Literal["auto", "on", "off"] = "auto"
    keep_checkpoints: Positive = 2

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
    path = Path(preset) if preset.endswith((".yaml", ".yml")) else PRESETS / f"{preset}.yaml"
    if not path.is_file():
        raise ConfigError("a known preset or a YAML file", f"preset={preset}", suggest(preset, preset_names()))
    settings = _read_yaml(path)
    for override in overrides or []:
        set_value(settings, override)
    settings |= {"preset": path.stem, "shards": str(Path(shards).absolute())}
    return check(RunConfig, settings, "the preset or the command line")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError("a YAML file", f"preset={path}: {' '.join(str(error).split())}", "correct its syntax") from None
    if not isinstance(settings, dict):
        raise ConfigError("a YAML file with keys and values", f"preset={path}", "see 'glassbox presets' for examples")
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
    *groups, last = key.split(".")
    for group in groups:
        inner = settings.get(group)
        settings[group] = inner if isinstance(inner, dict) else {}
        settings = settings[group]
    try:
        settings[last] = _number(text)
    except yaml.YAMLError:
        raise ConfigError("a value in YAML", f"{key}={text}", "quote it, or write a plain number or word") from None


def _number(text: str) -> Any:
    """A value as a person means it: YAML reads `1e-4` as text, for want of a dot, and `010` as 8."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return yaml.safe_load(text)

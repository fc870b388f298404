"""The subject of a report: a model, its training and evaluation images, and its training history."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import keras
import numpy as np

from pipelines.errors import ConfigError
from pipelines.health.check import check_shards
from pipelines.health.pictures import PictureReader
from pipelines.health.report import Health
from pipelines.input.mixed_manifest import MixedManifest, MixedSet, load_training_manifest, select_mix
from pipelines.records import Batch
from pipelines.remote.files import is_file
from pipelines.remote.uri import Location
from pipelines.shards.manifest import FILE_NAME, Manifest
from pipelines.spec import DataSpec
from pipelines.storage import hash_file
from service.diagnosis.calibration import calibrate
from service.diagnosis.label_issues import MAX_IMAGES, LabelIssues, find_label_issues, limit_batches
from service.inference.classes import ClassMatch, match_classes
from service.inference.classifier import (
    Features,
    Predictions,
    check_class_count,
    class_count,
    input_spec,
    load_model,
    predict,
    predict_with_features,
)
from service.inference.inspection import decide_image_fit, interpret_model
from service.inference.interpretation import Interpretation
from service.inference.jobs import find_class_names, read_interpretation
from service.report.analysis.ablation import (
    Ablation,
    Head,
    compute_ablation,
    count_stored_images,
    find_head,
)
from service.report.analysis.architecture import Architecture, describe_architecture
from service.report.analysis.calibration import ModelCalibration, assess_calibration
from service.report.analysis.clusters import assign_clusters
from service.report.analysis.embedding import Embedding, embed
from service.report.analysis.examples import ReportExample, select_examples
from service.report.analysis.forward import ForwardPass, choose_heatmap_layers, forward
from service.report.analysis.fourier_patterns import measure_colours
from service.report.analysis.images import Images, ShardImages
from service.report.analysis.layer_times import LayerTimes, measure_layer_times
from service.report.analysis.network import Network
from service.report.analysis.patterns import choose_pattern_layers
from service.report.analysis.receptive_field import ReceptiveField, compute_receptive_fields
from service.report.analysis.run_facts import RunFacts, collect_model_facts, collect_run_facts
from service.report.analysis.top_crops import Scan, scan_images, select_rows
from service.report.options import ReportOptions
from service.report.sections.provenance import Provenance
from service.runs import Run

LABEL_ISSUES = 12  # largest number of label issues shown
COLOUR_IMAGES = 64  # images whose colours are measured for the patterns of filters
MAX_HEALTH_IMAGES = 50_000  # images whose health is checked for a report: about 20 seconds


@dataclass(frozen=True)
class Subject:
    """Inputs of all sections of a report; expensive values are computed on first use.

    Attributes:
        name: Name of the run, or of the model file.
        model: The trained classifier.
        model_digest: SHA-256 of the model file.
        shards: Path or URI of the shard set.
        shards_digest: Digest of the shard set's manifest.
        classes: Class names in the order of the outputs; labels are indices into them.
        training: Split the model was trained on.
        evaluation: Split the model is evaluated on: validation, or training if the shard set has no other.
        interpretation: How pixels enter the model and what its outputs mean.
        match: How the classes of the shard set relate to the outputs of the model.
        facts: Facts about the run or the model, for the page.
        image_count: Number of images in all splits of the shard set.
        levels: How images of more than 8 bits were reduced, see `pipelines.spec.ShardSpec.levels`.
        mix: The sets that the training images come from, if there are several.
        options: Content of the report.
        run: Run the model belongs to; None for a model without a run.
        epochs: Metrics per epoch, see `service.runs.Run.metrics`; empty for a model without a run.
        config: Configuration of the run; empty for a model without a run.
    """

    name: str
    model: keras.Model
    model_digest: str
    shards: Location
    shards_digest: str
    classes: tuple[str, ...]
    training: Images
    evaluation: Images
    interpretation: Interpretation
    match: ClassMatch
    facts: RunFacts
    image_count: int
    levels: str = "full"
    mix: tuple[MixedSet, ...] = ()
    options: ReportOptions = field(default_factory=ReportOptions)
    run: Run | None = None
    epochs: tuple[dict[str, float], ...] = ()
    config: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def provenance(self) -> Provenance:
        """The model and the shard set, as recorded with every picture in the manifest."""
        pixels = self.interpretation.pixels
        return Provenance(
            self.model_digest,
            self.shards_digest,
            pixels.scale,
            self.evaluation.split,
            pixels.offset,
            self.interpretation.head,
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """How pixels, outputs and classes were interpreted, a line each."""
        return (*self.interpretation.notes, self.match.note)

    @cached_property
    def predictions(self) -> Predictions:
        """Predictions for every image of the evaluated split."""
        return self._evaluated[0]

    @cached_property
    def calibration(self) -> ModelCalibration | None:
        """How well the probabilities agree with the accuracy on the evaluated split; None for few images."""
        predictions = self.predictions
        return assess_calibration(predictions.probabilities, predictions.labels, self.options.seed)

    @cached_property
    def features(self) -> Features:
        """What the last layer receives for images of the evaluated split; for some of many images."""
        return self._evaluated[1]

    @cached_property
    def clusters(self) -> np.ndarray | None:
        """Clusters of the evaluated images by their features, int64 `[N]`, see `assign_clusters`."""
        return assign_clusters(
            self.features.values,
            self.features.indices,
            len(self.predictions.labels),
            len(self.classes),
            self.options.seed,
        )

    @cached_property
    def embedding(self) -> Embedding | None:
        """Positions of the images with features in two dimensions; None for too few images."""
        return embed(self.features.values, self.options.embedding, self.options.seed)

    @cached_property
    def _evaluated(self) -> tuple[Predictions, Features]:
        """Predictions and features of the evaluated split, from one pass over its images."""
        batches = self.evaluation.iterate_batches()
        return predict_with_features(self.model, batches, len(self.evaluation.labels), self.interpretation)

    @cached_property
    def training_predictions(self) -> Predictions | None:
        """Predictions for training images, the first ones of a large split; None without training images."""
        if self.training.split != "train":
            return None
        if self.evaluation.split == self.training.split:
            return self.predictions
        return self._predict(limit_batches(self.training.iterate_batches(), MAX_IMAGES))

    def _predict(self, batches: Iterable[Batch]) -> Predictions:
        return predict(self.model, batches, interpretation=self.interpretation)

    @cached_property
    def label_issues(self) -> LabelIssues | None:
        """Training images whose label the model contradicts; None without training images."""
        if self.training_predictions is None:
            return None
        calibration = None
        if self.evaluation.split != self.training.split:
            calibration = calibrate(self.predictions.probabilities, self.predictions.labels)
        return find_label_issues(
            self.training_predictions, self.classes, self.training.read_ids, LABEL_ISSUES, calibration
        )

    @cached_property
    def health(self) -> Health:
        """The health of the shard set; of a large one, of its first images."""
        return check_shards(self.shards, limit=MAX_HEALTH_IMAGES)

    @cached_property
    def _pictures(self) -> PictureReader:
        return PictureReader(self.shards)

    def read_picture(self, split: str, row: int) -> np.ndarray:
        """Reads any image of the shard set in its own proportions, uint8 `[H, W, 1 or 3]`."""
        return self._pictures.read(split, row)

    @cached_property
    def network(self) -> Network:
        """The model with access to the output of every layer."""
        pixels = self.interpretation.pixels
        return Network(self.model, pixels.scale, offset=pixels.offset, head=self.interpretation.head)

    @cached_property
    def architecture(self) -> Architecture:
        """The layers of the model in blocks, with what they compute and cost."""
        return describe_architecture(self.network)

    @cached_property
    def layer_times(self) -> LayerTimes | None:
        """How long every layer takes for the examples; None if the options leave it out."""
        if not self.options.layer_times or not self.examples:
            return None
        return measure_layer_times(self.network, np.stack([example.pixels for example in self.examples]))

    @cached_property
    def examples(self) -> tuple[ReportExample, ...]:
        """The images that several sections examine closely."""
        return select_examples(self.predictions, self.evaluation, self.classes, self.options)

    @cached_property
    def activation_examples(self) -> tuple[ReportExample, ...]:
        """The examples whose activations are shown: the first ones, or all if the options name rows."""
        if self.options.activation_rows is not None:
            return self.examples
        return self.examples[: self.options.activation_images]

    @cached_property
    def forward_pass(self) -> ForwardPass:
        """Logits, heatmaps and layer outputs of the examples."""
        layers = choose_heatmap_layers(self.network, self.options.heatmap_layers)
        return forward(self.network, self.examples, layers)

    @cached_property
    def receptive_fields(self) -> dict[str, ReceptiveField]:
        """The receptive fields of all feature maps, by name of the layer."""
        return compute_receptive_fields(self.network)

    @cached_property
    def colours(self) -> np.ndarray:
        """The axes along which the colours of the evaluated images vary, see `measure_colours`."""
        return measure_colours(self.evaluation.read(select_rows(self.evaluation, COLOUR_IMAGES).tolist()))

    @cached_property
    def head(self) -> Head | None:
        """The layers after the last feature map; None for a network without one."""
        return find_head(self.network)

    @cached_property
    def scan(self) -> Scan | None:
        """Strongest positions of the shown filters in the evaluated split, and what enters the head."""
        rows = select_rows(self.evaluation, self.options.scanned_images)
        layers = choose_pattern_layers(self.network)
        if not self.options.patterns or not len(rows) or not layers or self.head is None:
            return None
        channels = {layer.name: min(self.options.patterns, layer.shape[2]) for layer in layers}
        channels[self.head.layer.name] = self.head.layer.shape[2]
        limit = count_stored_images(self.network, self.head)
        return scan_images(self.network, self.evaluation, rows, channels, self.head.stored, limit)

    @cached_property
    def ablation(self) -> Ablation | None:
        """Accuracy without each channel of the last feature map; None where that is not defined."""
        if self.scan is None or self.head is None or self.scan.features is None:
            return None
        rows = self.scan.feature_rows
        probabilities = self.predictions.probabilities[np.searchsorted(self.predictions.rows, rows)]
        labels = self.evaluation.labels[rows]
        return compute_ablation(self.network, self.head, self.scan.features, labels, probabilities)


def open_run(run: Run, shards: Location, manifest: Manifest, options: ReportOptions) -> Subject:
    """Opens the subject of a run's report.

    Args:
        run: Run with a saved model.
        shards: Path or URI of the shard set the report is made with.
        manifest: Manifest of that shard set.
        options: Content of the report.

    Raises:
        ConfigError: The run has no model yet, or the shard set does not fit it.
    """
    run.check_has_model()
    config = run.config()
    return _open(
        run.path.name,
        run.model_path,
        shards,
        manifest,
        options,
        collect_run_facts(run, config, shards, manifest),
        run.custom_objects(),
        run=run,
        epochs=tuple(run.metrics()),
        config=config,
    )


def open_model(
    model_path: Path,
    shards: Location,
    manifest: Manifest,
    options: ReportOptions,
    custom_objects: Sequence[str] = (),
) -> Subject:
    """Opens the subject of a report of a model without a run.

    Args:
        model_path: A `.keras` file.
        shards: Path or URI of a shard set with images of the model's classes.
        manifest: Manifest of that shard set.
        options: Content of the report.
        custom_objects: Modules that define the custom layers of the model.

    Raises:
        ConfigError: The model cannot be used, or the shard set does not fit it.
    """
    facts = collect_model_facts(model_path, shards, manifest)
    return _open(model_path.stem, model_path, shards, manifest, options, facts, custom_objects)


def read_manifest(shards: Location, run: Run | None = None) -> Manifest:
    """Reads the manifest of a shard set, with the mix of a run that was trained on several.

    Args:
        shards: Path or URI of the shard set.
        run: Run whose report it is; None for a model without a run.

    Raises:
        ConfigError: There is no shard set.
        DataError: The manifest is damaged.
    """
    check_has_manifest(shards)
    return load_training_manifest(shards, DataSpec() if run is None else select_mix(run.config(), shards))


def check_has_manifest(shards: Location) -> None:
    """Checks that there is a shard set, before anything is read from it.

    Args:
        shards: Path or URI of the shard set.

    Raises:
        ConfigError: There is no shard set.
    """
    if not is_file(shards / FILE_NAME):
        raise ConfigError(
            "the shard set the model was trained on",
            f"shards={shards} (no {FILE_NAME} in it)",
            "name its directory with --data",
        )


def _open(
    name: str,
    model_path: Path,
    shards: Location,
    manifest: Manifest,
    options: ReportOptions,
    facts: RunFacts,
    custom_objects: Sequence[str] = (),
    **history: Any,
) -> Subject:
    model = load_model(model_path, custom_objects)
    check_class_count(model, manifest.classes)
    names = find_class_names(model_path, history.get("run"), class_count(model))
    match = match_classes(names.classes, manifest.classes, names.source)
    mix = manifest.mix if isinstance(manifest, MixedManifest) else ()
    weights = {mixed.location: mixed.weight for mixed in mix}
    known = None if names.metadata is None else read_interpretation(names.metadata)
    predict_options = options.predict_options
    image_fit, _ = decide_image_fit(predict_options, known)
    data = input_spec(model, image_fit).model_copy(update={"mix": weights or None})
    splits = [
        split for split in ("validation", "train") if split in manifest.splits and manifest.splits[split].rows
    ]
    if not splits:
        raise ConfigError(
            "a shard set with images",
            f"shards={shards} (splits: {', '.join(manifest.splits)})",
            "name another one with --data",
        )
    evaluation = ShardImages(shards, splits[0], data, match)
    interpretation = interpret_model(model, predict_options, known, evaluation)
    return Subject(
        name=name,
        model=model,
        model_digest=hash_file(model_path),
        shards=shards,
        shards_digest=manifest.digest(),
        classes=match.names,
        training=ShardImages(shards, splits[-1], data, match),
        evaluation=evaluation,
        interpretation=interpretation,
        match=match,
        facts=facts,
        image_count=sum(split.rows for split in manifest.splits.values()),
        levels=manifest.levels if names.metadata is None else names.metadata.levels,
        mix=mix,
        options=options,
        **history,
    )

"""Diagnosis: findings from the learning curves, and label issues among the training images."""

from __future__ import annotations

from collections.abc import Sequence

from service.diagnosis.findings import History, diagnose
from service.diagnosis.label_issues import LabelIssue, LabelIssues, find_label_issues
from service.inference.classifier import Predictions
from service.report.analysis.images import Images
from service.report.drawing.album import Album, Picture
from service.report.sections.provenance import Provenance
from service.report.sections.section import Section
from service.scores import majority_class_share

LABEL_ISSUES = 12  # largest number of label issues shown


def build_section(
    album: Album,
    provenance: Provenance,
    epochs: Sequence[dict[str, float]],
    classes: Sequence[str],
    training: Images,
    evaluation: Images,
    training_predictions: Predictions | None,
) -> Section | None:
    """Builds the findings with their advice, and the pictures of the label issues.

    Args:
        album: Album the pictures are added to.
        provenance: Model and shard set the pictures are recorded with in the manifest.
        epochs: Metrics per epoch, see `service.runs.Run.metrics`.
        classes: Class names; labels are indices into them.
        training: Split the model was trained on.
        evaluation: Split the model is evaluated on.
        training_predictions: Predictions for training images; None if there are no training images.

    Returns:
        The section; None if there are neither metrics nor training images.
    """
    findings = diagnose(_history(epochs, evaluation)) if epochs else []
    issues = None
    if training_predictions is not None:
        issues = find_label_issues(
            training_predictions.probabilities,
            training_predictions.labels,
            training_predictions.rows,
            classes,
            training.read_ids,
            LABEL_ISSUES,
        )
    if issues is None and not findings:
        return None
    values = {
        "findings": findings,
        "issues": issues,
        "pictures": _add_pictures(album, provenance, training, issues),
    }
    figures = {
        "findings": [
            {"kind": finding.kind, "words": finding.message, "advice": finding.advice, **finding.figures}
            for finding in findings
        ],
        "labels": issues.figures() if issues else None,
    }
    return Section("diagnosis", "Diagnosis", values, figures)


def _history(epochs: Sequence[dict[str, float]], evaluation: Images) -> History:
    if evaluation.split != "validation":
        return History(epochs)
    return History(epochs, len(evaluation.labels), majority_class_share(evaluation.labels))


def _add_pictures(
    album: Album, provenance: Provenance, training: Images, issues: LabelIssues | None
) -> list[tuple[LabelIssue, Picture]]:
    if issues is None or not issues.issues:
        return []
    pictures = []
    pixels = training.read([issue.row for issue in issues.issues])
    for issue, image in zip(issues.issues, pixels, strict=True):
        picture = album.add_photo(
            image,
            "label-issue",
            f"Training image {issue.row}, {issue.label}: {issue.id}",
            **provenance.describe_images(training.split, [issue.row], checkpoint=provenance.model_digest),
        )
        pictures.append((issue, picture))
    return pictures

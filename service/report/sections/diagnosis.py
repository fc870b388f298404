"""Diagnosis: findings from the learning curves, and label issues among the training images."""

from __future__ import annotations

from collections.abc import Sequence

from service.diagnosis.findings import History, diagnose
from service.diagnosis.label_issues import LabelIssue, LabelIssues
from service.report.analysis.images import Images
from service.report.drawing.album import Album, Picture
from service.report.sections.provenance import Provenance
from service.report.sections.section import Section
from service.scores import majority_class_share


def build_section(
    album: Album,
    provenance: Provenance,
    epochs: Sequence[dict[str, float]],
    training: Images,
    evaluation: Images,
    issues: LabelIssues | None,
) -> Section | None:
    """Builds the findings with their advice, and the pictures of the label issues.

    Args:
        album: Album the pictures are added to.
        provenance: Model and shard set the pictures are recorded with in the manifest.
        epochs: Metrics per epoch, see `service.runs.Run.metrics`.
        training: Split the model was trained on.
        evaluation: Split the model is evaluated on.
        issues: Training images whose label the model contradicts; None if there are no training images.

    Returns:
        The section; None if there are neither metrics nor training images.
    """
    findings = diagnose(_history(epochs, evaluation)) if epochs else []
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

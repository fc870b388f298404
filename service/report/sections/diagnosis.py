"""Diagnosis: what the curves show, in words, and the training images whose labels the model doubts."""

from __future__ import annotations

from service.diagnosis.findings import History, diagnose
from service.diagnosis.label_issues import LOOKED_AT, LabelIssues, find_label_issues, some
from service.inference.classifier import predict
from service.report.drawing.album import Album
from service.report.subject import Section, Subject
from service.scores import majority_class_share

SHOWN = 12  # doubtful labels


def build_section(subject: Subject, album: Album) -> Section | None:
    """Findings with what to try, and pictures of the suspects; None where there are neither curves nor training images."""
    doubts = _doubts(subject)
    findings = diagnose(_history(subject)) if subject.epochs else []
    if doubts is None and not findings:
        return None
    rows = [suspect.row for suspect in doubts.suspects] if doubts else []
    pictures = []
    for suspect, pixels in zip(
        doubts.suspects if doubts else (), subject.training.read(rows) if rows else (), strict=True
    ):
        words = f"Training image {suspect.row}, {suspect.label}: {suspect.id}"
        picture = album.add_photo(
            pixels,
            "suspect",
            words,
            **subject.origin(subject.training, [suspect.row], checkpoint=subject.model_digest),
        )
        pictures.append((suspect, picture))
    told = [{"kind": f.kind, "words": f.words, "advice": f.advice, **f.figures} for f in findings]
    figures = {"findings": told, "labels": doubts.figures() if doubts else None}
    return Section(
        "diagnosis", "Diagnosis", {"findings": findings, "doubts": doubts, "suspects": pictures}, figures
    )


def _history(subject: Subject) -> History:
    if subject.evaluation.split != "validation":
        return History(subject.epochs)
    return History(
        subject.epochs, len(subject.evaluation.labels), majority_class_share(subject.evaluation.labels)
    )


def _doubts(subject: Subject) -> LabelIssues | None:
    """None where there are no training images."""
    images = subject.training
    if images.split != "train":
        return None
    same = subject.evaluation.split == images.split
    told = (
        subject.predictions
        if same
        else predict(subject.model, some(images.batches(), LOOKED_AT), subject.scale)
    )
    return find_label_issues(told.probabilities, told.labels, told.rows, subject.classes, images.ids, SHOWN)

"""How sections show the examples: their photos, true and predicted classes, described in one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from service.report.analysis.examples import ReportExample
from service.report.drawing.album import Album, Picture
from service.report.sections.provenance import Provenance, draw_examples


@dataclass(frozen=True)
class ShownExample:
    """An example as a page shows it.

    Attributes:
        photo: The image itself.
        title: What identifies the image: `row 17`, or the name of its file.
        row: Row in its split; None for an image from elsewhere.
        truth: Name of the true class; None if it is not known, and then nothing is said about correctness.
        predicted: Name of the most probable class.
        probability: Probability of that class.
    """

    photo: Picture
    title: str
    row: int | None
    truth: str | None
    predicted: str
    probability: float

    @property
    def is_correct(self) -> bool | None:
        """Whether the prediction is correct; None without a true class."""
        return None if self.truth is None else self.truth == self.predicted


def show_examples(
    album: Album, provenance: Provenance, examples: Sequence[ReportExample], classes: Sequence[str]
) -> tuple[ShownExample, ...]:
    """Adds the photos of the examples to the album, and describes each for a template.

    Args:
        album: Album the photos are added to.
        provenance: Model and shard set the photos are recorded with in the manifest.
        examples: Images that the report examines closely.
        classes: Class names; labels are indices into them.

    Returns:
        One description per example, in their order.
    """
    photos = album.add_all(draw_examples(examples, provenance))
    return tuple(
        ShownExample(
            photo=photo,
            title=example.title,
            row=example.row,
            truth=None if example.truth is None else classes[example.truth],
            predicted=classes[example.predicted],
            probability=example.probability,
        )
        for example, photo in zip(examples, photos, strict=True)
    )

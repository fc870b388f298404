"""Provenance of a picture: the model and the images it was made from, as recorded in the manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from service.inference.interpretation import Head
from service.report.analysis.examples import ReportExample
from service.report.drawing.album import Drawing, draw_photo


@dataclass(frozen=True)
class Provenance:
    """The model and the shard set that all pictures of a report are made from.

    Attributes:
        model_digest: SHA-256 of the model file.
        shards_digest: Digest of the shard set's manifest.
        scale: Factor on the pixels before they enter the model.
        split: Split of the shard set that the examples are taken from.
        offset: Summand after the multiplication by `scale`.
        head: Whether the outputs of the model are `probabilities` or `logits`; None if not decided.
    """

    model_digest: str
    shards_digest: str
    scale: float
    split: str
    offset: float = 0.0
    head: Head | None = None

    def describe_images(self, split: str, rows: Sequence[int], **parameters: Any) -> dict[str, Any]:
        """Returns the manifest entry of a picture that shows stored images.

        Args:
            split: Split the images are read from.
            rows: Rows of the images in that split.
            **parameters: Anything else the picture depends on.
        """
        return {
            "shards": self.shards_digest,
            "split": split,
            "rows": [int(row) for row in rows],
            **parameters,
        }

    def describe_outputs(self, split: str, rows: Sequence[int], **parameters: Any) -> dict[str, Any]:
        """Returns the manifest entry of a picture that shows outputs of the model for images.

        Args:
            split: Split the images are read from.
            rows: Rows of the images in that split.
            **parameters: Anything else the picture depends on, such as the layer.
        """
        if self.offset:
            parameters = {"offset": self.offset} | parameters
        return self.describe_images(split, rows, checkpoint=self.model_digest, scale=self.scale, **parameters)

    def describe_example(self, example: ReportExample, **parameters: Any) -> dict[str, Any]:
        """Returns the manifest entry of a picture that belongs to one example.

        Args:
            example: Image the picture was computed from.
            **parameters: Anything else the picture depends on, such as the layer.
        """
        if example.row is not None:
            return self.describe_outputs(self.split, [example.row], **parameters)
        if self.offset:
            parameters = {"offset": self.offset} | parameters
        return {"image": example.file, "checkpoint": self.model_digest, "scale": self.scale, **parameters}


def draw_examples(examples: Sequence[ReportExample], provenance: Provenance) -> list[Drawing]:
    """Draws the examples themselves, one photo each.

    Args:
        examples: Images the report examines closely.
        provenance: Model and shard set they are recorded with in the manifest.
    """
    return [
        draw_photo(
            example.pixels,
            "input",
            example.name[0].upper() + example.name[1:],
            provenance.describe_example(example),
        )
        for example in examples
    ]

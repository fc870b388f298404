"""Where the page shows the pictures of well-known tutorials, by the names that these use."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple


class TutorialPicture(NamedTuple):
    """A picture that tutorials on convolutional networks draw.

    Attributes:
        name: Name of the picture in the tutorials.
        section: Id of the section that shows it.
    """

    name: str
    section: str


PICTURES = (
    TutorialPicture("Training and validation accuracy, training and validation loss", "curves"),
    TutorialPicture("Grid of training images with their labels", "training_images"),
    TutorialPicture("Augmented images", "augmentation"),
    TutorialPicture(
        "Grid of predictions: blue or green for correct ones, red for incorrect ones", "predictions"
    ),
    TutorialPicture("Bar chart of the probabilities of one image (softmax)", "predictions"),
    TutorialPicture("Confusion matrix", "confusion"),
    TutorialPicture("Predictions for your own photos", "samples"),
    TutorialPicture("Grad-CAM overlay (class activation heatmap)", "gradcam"),
    TutorialPicture("Saliency map", "saliency"),
    TutorialPicture("Intermediate activations, 16 channels per row", "activations"),
    TutorialPicture("Filter patterns (filter visualization by gradient ascent)", "patterns"),
    TutorialPicture("Weights of dense and convolution layers as images", "weights"),
    TutorialPicture("Edge filter (convolution by hand)", "edges"),
    TutorialPicture("Linear probes: how much each layer knows about the class", "linear_probes"),
)


def list_tutorial_pictures(sections: Collection[str]) -> list[TutorialPicture]:
    """Lists the pictures that a page shows.

    Args:
        sections: Ids of the sections of the page.
    """
    return [picture for picture in PICTURES if picture.section in sections]

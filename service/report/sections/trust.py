"""Trust: whether the heatmaps mean anything, measured. What fails is said."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from service.report.analysis.gradcam import BATCH, Heatmaps
from service.report.analysis.measures import STEPS, Removal, found, randomized, removal, spearman
from service.report.analysis.network import Network
from service.report.drawing.album import Album
from service.report.drawing.formatting import percent
from service.report.drawing.plots import Line, Plot
from service.report.subject import Section, Subject

DRAWS = 3  # of random weights
CHANGED, OTHER, POINTING, ENERGY, DISTRACTED = 0.3, 0.5, 0.95, 0.35, 0.05  # bounds: see the checks


@dataclass(frozen=True)
class Check:
    """Something that heatmaps which mean anything pass.

    Attributes:
        name: In few words.
        value: What was measured.
        needs: What it has to be.
        passed: Whether it is.
        words: What that says of the maps, in one sentence.
    """

    name: str
    value: float
    needs: str
    passed: bool
    words: str


def build_section(subject: Subject, album: Album) -> Section | None:
    """Puts Grad-CAM of the last feature map to the test on random images of the judged split; None without feature maps."""
    network, options, images = subject.network, subject.options, subject.evaluation
    total = len(subject.predictions.rows)
    if network.last_map is None or not options.trust_images or not total:
        return None
    chosen = np.sort(
        np.random.default_rng(options.seed).choice(total, min(options.trust_images, total), replace=False)
    )
    rows = subject.predictions.rows[chosen].tolist()
    pixels = images.read(rows)
    said, truth = (
        subject.predictions.classes[chosen].astype(np.int64),
        subject.predictions.labels[chosen].astype(np.int64),
    )
    second = np.argsort(-subject.predictions.probabilities[chosen], axis=1, kind="stable")[:, 1]
    heatmaps = Heatmaps(network, [network.last_map.name], ["signed"], classes=3)
    classes = np.stack([said, second, truth], axis=1)
    maps = _maps(heatmaps, pixels, classes)
    checks = [*_randomization(network, heatmaps, pixels, classes, maps, options.seed), _other_class(maps)]
    by_map, by_chance = _removals(network, pixels, said, maps[:, 0], options.seed)
    checks += _removal_checks(by_map, by_chance)
    boxes = images.evidence(rows)
    known = [n for n, box in enumerate(boxes) if box is not None]
    if known:
        checks += _box_checks(
            [np.maximum(maps[n, 2], 0) for n in known], [pixels[n] for n in known], [boxes[n] for n in known]
        )
    values = {
        "images": len(rows),
        "split": images.split,
        "layer": network.last_map.name,
        "checks": checks,
        "plots": _plots(by_map, by_chance),
        "boxes": len(known),
    }
    figures = {
        "checks": [asdict(check) for check in checks],
        "rows": rows,
        "layer": network.last_map.name,
        "seed": options.seed,
        "deletion": {"by_map": by_map.deletion.tolist(), "by_chance": by_chance.deletion.tolist()},
        "insertion": {"by_map": by_map.insertion.tolist(), "by_chance": by_chance.insertion.tolist()},
    }
    return Section("trust", "Can the heatmaps be trusted?", values, figures)


def _maps(heatmaps: Heatmaps, pixels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Signed maps `[N, M, h, w]`."""
    (maps,) = heatmaps(pixels, classes).maps.values()
    return maps


def _likeness(maps: np.ndarray, others: np.ndarray) -> float:
    """Mean rank correlation of maps `[N, h, w]`, each with its counterpart."""
    return float(np.mean([spearman(a, b) for a, b in zip(maps, others, strict=True)]))


def _randomization(
    network: Network, heatmaps: Heatmaps, pixels: np.ndarray, classes: np.ndarray, maps: np.ndarray, seed: int
) -> list[Check]:
    """Maps of the same classes with the same weights, and with shuffled ones."""
    like = []
    for draw in range(DRAWS):
        with randomized(network.model, seed + draw):
            like.append(_likeness(maps[:, 0], _maps(heatmaps, pixels, classes)[:, 0]))
    shuffled, same = float(np.mean(like)), _likeness(maps[:, 0], _maps(heatmaps, pixels, classes)[:, 0])
    passed = abs(shuffled) < CHANGED
    says = "they show what was learned" if passed else "they show the images, not what was learned"
    return [
        Check(
            "Same weights",
            same,
            "1.00",
            same > 0.999,
            f"With the same weights the heatmaps are the same (Spearman {same:.2f}).",
        ),
        Check(
            "Random weights",
            shuffled,
            f"between -{CHANGED} and {CHANGED}",
            passed,
            f"With shuffled weights the heatmaps {'are others' if passed else 'stay much the same'} (Spearman {shuffled:.2f}): {says}.",
        ),
    ]


def _other_class(maps: np.ndarray) -> Check:
    """Maps for the answer beside those for the second answer: what looks alike for all classes says nothing of any."""
    alike = _likeness(maps[:, 0], maps[:, 1])
    passed = alike < OTHER
    words = f"The heatmap for the second answer {'is another' if passed else 'looks much the same'} (Spearman {alike:.2f})."
    return Check("Another class", alike, f"below {OTHER}", passed, words)


def _removals(
    network: Network, pixels: np.ndarray, said: np.ndarray, maps: np.ndarray, seed: int
) -> tuple[Removal, Removal]:
    """Places removed in the order of the maps, and of random maps of the same size."""
    graph = network.compiled(lambda x: tf.nn.softmax(network.run(x).logits))

    def answer(images: np.ndarray) -> np.ndarray:
        return np.concatenate(
            [graph(images[start : start + BATCH]).numpy() for start in range(0, len(images), BATCH)]
        )

    images = pixels.astype(np.float32)
    chance = np.random.default_rng(seed).normal(size=maps.shape).astype(np.float32)
    return removal(answer, images, said, maps, seed), removal(answer, images, said, chance, seed)


def _removal_checks(by_map: Removal, by_chance: Removal) -> list[Check]:
    (gone, back), (gone_by_chance, back_by_chance) = by_map.areas, by_chance.areas
    sooner, earlier = gone < gone_by_chance, back > back_by_chance
    falls = f"chance (area {gone:.2f}, by chance {gone_by_chance:.2f})"
    comes = f"chance (area {back:.2f}, by chance {back_by_chance:.2f})"
    deletion = "takes the answer away sooner than" if sooner else "hurts the answer no more than"
    insertion = "brings the answer back sooner than" if earlier else "helps the answer no more than"
    return [
        Check(
            "Deletion",
            gone,
            f"below {gone_by_chance:.2f}, by chance",
            sooner,
            f"Removing bright places first {deletion} {falls}.",
        ),
        Check(
            "Insertion",
            back,
            f"above {back_by_chance:.2f}, by chance",
            earlier,
            f"Showing bright places first {insertion} {comes}.",
        ),
    ]


def _box_checks(maps: list[np.ndarray], images: list[np.ndarray], boxes: list[Any]) -> list[Check]:
    """The three figures that only together say that maps find the object."""
    figures = found(maps, images, boxes)
    pointing, inside, distracted = (
        percent(figures.pointing),
        percent(figures.energy),
        percent(figures.distracted),
    )
    chance = f"(noise: {percent(figures.chance, 0)})"
    words = (
        f"{pointing} of the heatmaps have their brightest place on the object {chance}.",
        f"{inside} of their brightness lies on the object {chance}.",
        f"{distracted} of the heatmaps point at the hardest edges elsewhere.",
    )
    return [
        Check("Pointing", figures.pointing, f"at least {POINTING}", figures.pointing >= POINTING, words[0]),
        Check("Energy in the box", figures.energy, f"at least {ENERGY}", figures.energy >= ENERGY, words[1]),
        Check(
            "Distracted",
            figures.distracted,
            f"at most {DISTRACTED}",
            figures.distracted <= DISTRACTED,
            words[2],
        ),
    ]


def _plots(by_map: Removal, by_chance: Removal) -> list[Plot]:
    share = [step * 100 / STEPS for step in range(STEPS + 1)]

    def plot(title: str, x: str, ours: np.ndarray, chance: np.ndarray) -> Plot:
        return Plot(
            title,
            x,
            share,
            (Line("brightest first", ours.tolist(), "a"), Line("by chance", chance.tolist(), "b")),
            percent=True,
        )

    return [
        plot(
            "Probability of the answer while places are removed",
            "% removed",
            by_map.deletion,
            by_chance.deletion,
        ),
        plot(
            "Probability of the answer while places are shown",
            "% shown",
            by_map.insertion,
            by_chance.insertion,
        ),
    ]

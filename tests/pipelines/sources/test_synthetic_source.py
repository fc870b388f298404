"""The synthetic source: the same pixels everywhere, and only the ball's pattern depends on the class."""

from __future__ import annotations

import hashlib
import io
import itertools
import pickle

import numpy as np
import pytest
from PIL import Image

from pipelines.errors import ConfigError
from pipelines.sources import open_source
from pipelines.sources.scene import Draws, render
from pipelines.sources.synthetic import SyntheticSource

KEYS = list(itertools.product((0, 1), ("train", "validation"), range(4)))  # seed, split, index


def find_differences(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows and columns of the pixels in which two pictures differ."""
    return np.nonzero((a != b).any(axis=-1))


@pytest.mark.parametrize(
    ("key", "size", "label", "digest"),
    [
        ((0, "train", 0), 96, 0, "80e861d8ada4938e"),
        ((0, "train", 1), 96, 1, "5e6c5b9dedb87267"),
        ((7, "validation", 123), 33, 1, "b5e5e3cc2d20d810"),
    ],
)
def test_pixels_are_fixed(key: tuple[int, str, int], size: int, label: int, digest: str) -> None:
    # Pixels before JPEG, so that the version of libjpeg does not matter. After an intended change, increment
    # `scene.VERSION` and write the new digests.
    assert hashlib.sha256(render(key, size, label)[0].tobytes()).hexdigest()[:16] == digest


def test_draws_are_uniform_and_in_range() -> None:
    plane = Draws(0, "some", 1).plane(300, 300)
    assert plane.dtype == np.float32
    assert -1.0 < plane.min() < -0.999
    assert 0.999 < plane.max() < 1.0
    assert abs(float(plane.mean())) < 0.01
    assert float(plane.var()) == pytest.approx(1 / 3, abs=0.01)
    numbers = [Draws(0, index).between(2.0, 4.0) for index in range(2000)]
    assert np.mean(numbers) == pytest.approx(3.0, abs=0.05)
    assert min(numbers) >= 2.0
    assert max(numbers) <= 4.0


def test_every_part_of_the_key_changes_the_picture() -> None:
    pictures = [
        render(key, 32, 0)[0].tobytes()
        for key in [(0, "train", 0), (1, "train", 0), (0, "validation", 0), (0, "train", 1)]
    ]
    assert len(set(pictures)) == 4


def test_ranges_are_read_like_single_examples() -> None:
    source = SyntheticSource("evidence,train=12,validation=4,size=32")
    whole = list(source.read("train", 0, 12))
    single = [example for index in reversed(range(12)) for example in source.read("train", index, index + 1)]
    assert whole == single[::-1]
    assert list(pickle.loads(pickle.dumps(source)).read("train", 5, 9)) == whole[5:9]
    assert [example.id for example in whole[:2]] == ["train/000000", "train/000001"]
    assert list(source.read("train", 10, 99)) == whole[10:]


def test_a_picture_does_not_depend_on_the_counts() -> None:
    small, large = (next(SyntheticSource(f"evidence,size=32,train={n}").read("train", 1, 2)) for n in (2, 50))
    assert small == large


@pytest.mark.parametrize("size", [33, 96])
@pytest.mark.parametrize("label", [0, 1])
def test_the_box_encloses_the_ball_tightly(label: int, size: int) -> None:
    for key in KEYS:
        picture, (ymin, xmin, ymax, xmax) = render(key, size, label)
        rows, columns = find_differences(picture, render(key, size, None)[0])
        assert 0.0 <= ymin < ymax <= 1.0
        assert 0.0 <= xmin < xmax <= 1.0
        assert ymax - ymin == pytest.approx(xmax - xmin)
        assert len(rows) > 0.7 * (ymax - ymin) * (xmax - xmin) * size**2  # a disc fills pi / 4 of its box
        for low, high, pixels in ((ymin, ymax, rows), (xmin, xmax, columns)):  # a pixel counts by its centre
            assert low <= (pixels.min() + 0.5) / size <= low + 2.0 / size
            assert high - 2.0 / size <= (pixels.max() + 0.5) / size <= high


def test_the_label_changes_pixels_inside_the_box_only() -> None:
    for key in KEYS:
        (striped, box) = render(key, 64, 0)
        (checkered, same_box) = render(key, 64, 1)
        assert box == same_box
        rows, columns = find_differences(striped, checkered)
        assert len(rows) > 100
        ymin, xmin, ymax, xmax = (edge * 64 for edge in box)
        assert ymin <= rows.min() + 0.5
        assert rows.max() + 0.5 <= ymax
        assert xmin <= columns.min() + 0.5
        assert columns.max() + 0.5 <= xmax


def test_classes_are_balanced_and_look_the_same_on_average() -> None:
    source = SyntheticSource("evidence,train=200,size=32")
    examples = list(source.read("train", 0, 200))
    assert [example.label for example in examples] == [0, 1] * 100
    drawn = [
        [render((0, "train", index), 48, label)[0].astype(float) for index in range(40)] for label in (0, 1)
    ]
    striped, checkered = (np.array(pictures) for pictures in drawn)
    shift = (striped - checkered).mean(axis=(1, 2, 3))  # per picture, the pattern flipped
    assert np.abs(shift).mean() < 1.0  # levels of 255
    assert abs(shift.mean()) < 2.5 * shift.std() / len(shift) ** 0.5 + 0.05
    assert striped.std() == pytest.approx(checkered.std(), rel=0.03)


def test_stripes_and_checks_differ_along_lines() -> None:
    """Some line through a striped ball has one colour; no line through a checkered one does."""
    lowest_contrast = {0: [], 1: []}
    for label, key in itertools.product((0, 1), KEYS):
        picture, (ymin, xmin, ymax, xmax) = render(key, 128, label)
        centre_y = (ymin + ymax) * 64
        centre_x = (xmin + xmax) * 64
        steps = np.linspace(-0.5, 0.5, 40) * (ymax - ymin) * 64
        grey = picture.astype(float).mean(axis=-1)
        angles = np.linspace(0, np.pi, 24, endpoint=False)[:, None]
        contrast = grey[
            (centre_y + steps * np.sin(angles)).astype(int), (centre_x + steps * np.cos(angles)).astype(int)
        ].std(axis=1)
        lowest_contrast[label].append(contrast.min() / contrast.max())
    assert np.mean(lowest_contrast[0]) < 0.3
    assert np.mean(lowest_contrast[1]) > 0.4


def test_the_jpeg_is_the_picture() -> None:
    example = next(SyntheticSource("evidence,seed=3,size=64").read("validation", 4, 5))
    with Image.open(io.BytesIO(example.image)) as image:
        assert image.format == "JPEG"
        decoded = np.asarray(image).astype(float)
    pixels, box = render((3, "validation", 4), 64, 0)
    assert example.bbox == box
    assert example.label == 0
    assert np.abs(decoded - pixels).mean() < 6.0  # JPEG loses the grain of the picture


def test_counts_classes_and_name() -> None:
    source = open_source("synthetic:evidence,validation=7")
    assert source.counts() == {"train": 1600, "validation": 7}
    assert source.classes == ("striped", "checkered")
    assert source.name == "synthetic:evidence,validation=7"
    assert open_source("synthetic:evidence,validation=0").counts() == {"train": 1600}


def test_the_fingerprint_depends_on_options_and_not_on_their_order() -> None:
    arguments = ["", ",train=8", ",validation=8", ",seed=8", ",size=64"]
    digests = [SyntheticSource(f"evidence{options}").fingerprint() for options in arguments]
    assert all(a != b for a, b in itertools.combinations(digests, 2))
    assert (
        SyntheticSource("evidence,seed=1,size=64").fingerprint()
        == SyntheticSource("evidence,size=64,seed=1").fingerprint()
    )
    assert SyntheticSource("evidence,size=96").fingerprint() == digests[0]


@pytest.mark.parametrize(
    ("argument", "received", "fix"),
    [
        ("balls", "source=synthetic:balls", "synthetic:evidence"),
        ("evidence,sized=64", "option='sized=64'", "use size"),
        ("evidence,", "option=''", "use one of"),
        ("evidence,size=31", "option='size=31'", "size=96"),
        ("evidence,size=2000", "option='size=2000'", "size=96"),
        ("evidence,train=1", "option='train=1'", "train=1600"),
        ("evidence,train=1e3", "option='train=1e3'", "train=1600"),
        ("evidence,seed=-1", "option='seed=-1'", "seed=0"),
        ("evidence,seed", "option='seed'", "seed=0"),
        ("evidence,seed=٣", "option='seed=٣'", "seed=0"),
        ("evidence,seed=" + "9" * 5000, "option='seed=99", "seed=0"),
        ("evidence,seed=1,seed=2", "option='seed=2'", "remove one"),
    ],
)
def test_the_message_for_a_wrong_option_says_what_to_write(argument: str, received: str, fix: str) -> None:
    with pytest.raises(ConfigError) as error:
        SyntheticSource(argument)
    assert received in error.value.received
    assert fix in error.value.fix

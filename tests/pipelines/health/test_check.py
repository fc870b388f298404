"""The health of small shard sets whose duplicates, classes and unusual images are known."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from shard_samples import make_record, write_shards

from pipelines.errors import DataError
from pipelines.health.check import check_shards
from pipelines.health.report import Health
from pipelines.health.text import describe_health
from pipelines.records import Record
from pipelines.shards.codec import encode_jpeg
from service.cli import main

LEAK = "Leakage: 2 of 5 validation images are also in train."


def draw_picture(seed: int, width: int = 96, height: int = 80) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height)))


def make_jpeg(pixels: np.ndarray, label: int, name: str, quality: int = 90) -> Record:
    return Record(encode_jpeg(np.ascontiguousarray(pixels), quality, "420"), label, name, pixels.shape)


def make_set(directory: Path, format: str = "arrow") -> Path:
    """Pictures 0 to 5 in train, then copies of them, of different kinds, in both splits."""
    train = [make_jpeg(draw_picture(seed), seed % 2, f"{seed}.jpg") for seed in range(6)]
    brighter = np.asarray(ImageEnhance.Brightness(Image.fromarray(draw_picture(2))).enhance(1.1))
    smaller = np.asarray(Image.fromarray(draw_picture(3)).resize((64, 64)))
    train += [
        make_jpeg(draw_picture(0), 1, "same-file.jpg"),  # with another label
        make_jpeg(brighter, 0, "brighter.jpg", 60),
        make_record(np.full((40, 40, 3), 9, np.uint8), 0, "black.png"),
    ]
    validation = [
        make_jpeg(draw_picture(3), 1, "leak.jpg"),
        make_jpeg(smaller, 1, "smaller.jpg"),
        make_jpeg(draw_picture(7), 0, "seven.jpg"),
        make_jpeg(draw_picture(7)[:, ::-1], 0, "mirrored.jpg"),
        make_record(np.full((40, 40, 3), (250, 250, 251), np.uint8), 0, "white.png"),
    ]
    splits = {"train": train, "validation": validation}
    return write_shards(directory, ("cats", "dogs"), splits, shard_rows=4, format=format)


def list_groups(health: Health) -> dict[tuple[str, ...], str]:
    return {tuple(image.id for image in group.images): group.kind for group in health.duplicates}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("health") / "shards")


@pytest.fixture(scope="module")
def health(shards: Path) -> Health:
    return check_shards(shards)


def test_duplicates_of_every_kind_are_grouped(health: Health) -> None:
    assert list_groups(health) == {
        ("0.jpg", "same-file.jpg"): "identical",
        ("2.jpg", "brighter.jpg"): "similar",
        ("3.jpg", "leak.jpg", "smaller.jpg"): "similar",
        ("seven.jpg", "mirrored.jpg"): "mirrored",
    }


def test_leakage_is_the_first_warning(health: Health) -> None:
    assert health.count_leaked() == {("train", "validation"): 2}
    assert health.warnings[0].startswith(LEAK)
    assert health.alerts == health.warnings[:2]
    assert "1 picture has copies with different labels" in health.warnings[1]
    assert health.warnings[2].startswith("3 images are copies of another one in the same split")
    assert health.warnings[3].startswith("2 images are of a single colour")
    assert len(health.warnings) == 4


def test_unusual_images(health: Health) -> None:
    assert [image.id for image in health.constant] == ["black.png", "white.png"]
    assert (health.darkest[0][0].id, health.darkest[0][1]) == ("black.png", pytest.approx(9, abs=0.01))
    assert (health.brightest[0][0].id, health.brightest[0][0].row) == ("white.png", 4)
    sizes = health.sizes
    assert sizes is not None
    assert (sizes.most_common, sizes.most_common_count, sizes.distinct) == ((80, 96), 11, 3)
    assert (sizes.heights, sizes.widths) == ((40, 80, 80), (40, 96, 96))
    assert health.class_counts == {"train": (5, 4), "validation": (3, 2)}
    means = [mean for mean in health.mean_images if mean is not None]
    assert [mean.shape for mean in means] == [(32, 32, 3)] * 2


@pytest.mark.parametrize("format", ["arrow", "tfrecord"])
def test_the_same_in_both_formats(tmp_path: Path, health: Health, format: str) -> None:
    assert check_shards(make_set(tmp_path / "other", format)).figures() == health.figures()


def test_the_same_pixels_in_another_file_format_are_identical(tmp_path: Path) -> None:
    pixels = [draw_picture(seed) for seed in range(3)]
    jpeg = make_jpeg(pixels[0], 0, "0.jpg")
    decoded = np.asarray(Image.open(io.BytesIO(jpeg.image)))
    records = [jpeg, make_record(decoded, 0, "0.png"), make_jpeg(pixels[1], 0, "1.jpg")]
    health = check_shards(write_shards(tmp_path / "shards", ("a",), {"train": records}))
    assert list_groups(health) == {("0.jpg", "0.png"): "identical"}


def test_different_pictures_are_no_duplicates(tmp_path: Path) -> None:
    """Flat images have no usable hash, and all look alike."""
    flat = [make_record(np.full((20, 20, 1), 100 + row, np.uint8), 0, f"flat-{row}") for row in range(5)]
    noise = np.random.default_rng(0)
    sharp = [
        make_record(noise.integers(0, 256, (20, 20, 1)).astype(np.uint8), 0, f"noise-{row}")
        for row in range(40)
    ]
    pictures = [make_jpeg(draw_picture(seed), 1, f"{seed}.jpg") for seed in range(40)]
    health = check_shards(write_shards(tmp_path / "shards", ("a", "b"), {"train": flat + sharp + pictures}))
    assert health.duplicates == ()


def test_similar_hashes_alone_make_no_duplicates(tmp_path: Path) -> None:
    """One picture under noise of its own in every image, which hardly reaches the lowest frequencies."""
    random = np.random.default_rng(0)
    base = draw_picture(0, 32, 32).astype(float)
    images = [np.clip(base + random.normal(0, 40, base.shape), 0, 255).astype(np.uint8) for _ in range(20)]
    records = [make_record(image, 0, f"{row}.png") for row, image in enumerate(images)]
    records.append(make_record(np.clip(images[4] * 0.9, 0, 255).astype(np.uint8), 0, "4-darker.png"))
    health = check_shards(write_shards(tmp_path / "shards", ("a",), {"train": records}))
    assert list_groups(health) == {("4.png", "4-darker.png"): "similar"}


def test_many_copies_of_one_image(tmp_path: Path) -> None:
    """Their pairs are not compared one by one: there would be 2 million."""
    record = make_record(draw_picture(0, 16, 16), 0, "copy")
    splits = {"train": [record] * 2000, "validation": [record] * 3}
    health = check_shards(write_shards(tmp_path / "shards", ("a",), splits))
    (group,) = health.duplicates
    assert (len(group.images), group.kind, health.count_leaked()) == (
        2003,
        "identical",
        {("train", "validation"): 3},
    )


def test_a_limit_reads_the_first_images_of_every_split(shards: Path) -> None:
    health = check_shards(shards, limit=7)
    assert (health.images, health.total) == (12, 14)  # whole shards of 4 rows
    assert {image.split for group in health.duplicates for image in group.images} == {"train", "validation"}
    assert "The first 12 of 14 images were checked" in describe_health(health)


@pytest.mark.parametrize(
    ("counts", "warning"),
    [
        ((8, 1), "The largest class has 8 times as many images as the smallest one."),
        ((3, 1), None),
        ((4, 0), "1 of 2 classes have no train images: b."),
        ((0, 0), None),
    ],
)
def test_class_sizes(tmp_path: Path, counts: tuple[int, int], warning: str | None) -> None:
    labels = [0] * counts[0] + [1] * counts[1]
    records = [make_jpeg(draw_picture(row), label, f"{row}.jpg") for row, label in enumerate(labels)]
    health = check_shards(write_shards(tmp_path / "shards", ("a", "b"), {"train": records}))
    assert [text.startswith(warning or "") for text in health.warnings] == [True] * (warning is not None)


def test_a_damaged_image_is_an_error_that_names_it(tmp_path: Path) -> None:
    shards = make_set(tmp_path / "shards")
    path = next(shards.glob("validation-00000*"))
    content = bytearray(path.read_bytes())
    content[content.index(b"\xff\xd8") + 300] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"validation-00000.arrow: row=0 id=leak.jpg"):
        check_shards(shards)


def run_command(arguments: Sequence[str | Path], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = main(["shards", "check", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_the_command_warns_and_succeeds(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, output = run_command([shards], capsys)
    assert code == 0
    assert output.index("1. Leakage: 2 of 5") < output.index("2. ")
    assert "validation row 0: leak.jpg (dogs)" in output
    assert "mirror images" in output


def test_strict_fails_on_warnings_alone(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, output = run_command([shards, "--strict"], capsys)
    assert code == DataError.exit_code
    assert "warnings=4, first: Leakage" in output
    records = [make_jpeg(draw_picture(row), row % 2, f"{row}.jpg") for row in range(4)]
    healthy = write_shards(tmp_path / "healthy", ("a", "b"), {"train": records})
    code, output = run_command([healthy, "--strict"], capsys)
    assert code == 0
    assert "No problems were found" in output


def test_json_has_every_figure(shards: Path, health: Health, capsys: pytest.CaptureFixture[str]) -> None:
    code, output = run_command([shards, "--json"], capsys)
    assert (code, json.loads(output)) == (0, json.loads(json.dumps(health.figures())))


def test_the_page_shows_the_pictures(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page"
    for _ in range(2):  # the second replaces the first
        code, _ = run_command([shards, "--out", out], capsys)
        assert code == 0
    html = (out / "index.html").read_text()
    manifest = json.loads((out / "manifest.json").read_text())
    assert html.index(LEAK) < html.index("copies with different labels")
    assert html.index("leak.jpg") < html.index("same-file.jpg") < html.index("brighter.jpg")
    assert "brightness 250 of 255; validation row 4" in html
    assert manifest["figures"]["leaked"] == [{"split": "validation", "also_in": "train", "images": 2}]
    assert all((out / entry["file"]).is_file() for entry in manifest["pictures"])


def test_names_cannot_break_the_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [make_jpeg(draw_picture(0), 0, f"a\n{row}\x1b[31m.jpg") for row in range(2)]
    _, output = run_command([write_shards(tmp_path / "shards", ("x\ny",), {"train": records})], capsys)
    assert "\x1b" not in output
    assert "a\\n0" in output


def test_no_shard_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, output = run_command([tmp_path], capsys)
    assert (code, "no manifest.json" in output) == (DataError.exit_code, True)

"""The preview page: the exact pictures that training sees, with the parameters drawn."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from order_oracle import epoch_order
from PIL import Image
from shard_samples import encode_png, make_record, write_shards

from pipelines.augment.apply import apply_augmentations
from pipelines.augment.describe import describe_draws
from pipelines.augment.draw import draw
from pipelines.errors import ConfigError, GlassboxError
from pipelines.input.mix import open_reader
from pipelines.input.order import EpochOrder
from pipelines.input.passes import build_order
from pipelines.input.tfdata import decode
from pipelines.spec import AugmentSpec, DataSpec
from service.report.analysis.augmented import PreviewOptions, augment_images
from service.report.drawing.album import Album
from service.report.drawing.formatting import difference
from service.report.pages.page import load_templates
from service.report.pages.preview import render_preview
from service.report.sections import augmentation

DATA = DataSpec(image_size=(8, 8))
ROWS = 7  # one is left without a neighbour
IMAGES = np.random.default_rng(0).integers(0, 256, (ROWS, 8, 8, 3)).astype(np.uint8)
EVERYTHING = AugmentSpec(
    rotation=40, shift=0.2, shear=15, zoom=0.2, flip=True, flip_vertical=True, crop=(0.4, 0.9),
    fill="reflect", fill_value=120.0,
    brightness=0.2, contrast=0.2, saturation=0.3, hue=15, erase=0.5, mixup=0.4, cutmix=1.0,
)  # fmt: skip
OPTIONS = PreviewOptions(seed=5, rows=ROWS, versions=3)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [make_record(IMAGES[row], row % 2, f"some/<i>{row}.png") for row in range(ROWS)]
    return write_shards(
        tmp_path_factory.mktemp("preview") / "shards",
        ("cat & <b>mouse</b>", "dog"),
        {"train": rows, "empty": []},
        3,
    )


@pytest.fixture(scope="module")
def page(shards: Path) -> Path:
    path = render_preview(shards, DATA, EVERYTHING, OPTIONS, shards.parent / "page")
    assert path == shards.parent / "page" / "index.html"
    return path


class Images(HTMLParser):
    """The attributes of every picture of a page, the words of every fact, and every address."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.pictures: list[dict[str, str | None]] = []
        self.addresses: list[str | None] = []
        self.text: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.pictures += [values] if tag == "img" else []
        self.addresses += [values[name] for name in ("src", "href") if name in values]

    def handle_data(self, data: str) -> None:
        self.text.append(data.strip())


def augment_as_training(epoch: int) -> dict[int, np.ndarray]:
    """Every image as an epoch sees it, row by row, from one padded batch."""
    rows = np.append(epoch_order(ROWS, OPTIONS.seed, epoch), -1)
    images = np.where(rows[:, None, None, None] < 0, np.uint8(0), IMAGES[rows])
    batch = {"image": tf.constant(images)} | draw(EVERYTHING, OPTIONS.seed, epoch, rows, DATA)
    pixels = np.rint(apply_augmentations(batch, EVERYTHING)[0].numpy()).astype(np.uint8)
    return dict(zip(rows.tolist(), pixels, strict=True))


def pixels_of(page: Path, picture: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(page.parent / picture["src"]))[::14, ::14]  # enlarged from 8 to 112


def test_the_pictures_equal_those_of_training(page: Path) -> None:
    pictures = Images(page).pictures
    epochs = [augment_as_training(epoch) for epoch in (1, 2, 3)]
    order = epoch_order(ROWS, OPTIONS.seed, 1).tolist()
    assert len(pictures) == ROWS * 4
    for place, row in enumerate(order):
        original, *versions = pictures[4 * place : 4 * place + 4]
        np.testing.assert_array_equal(pixels_of(page, original), IMAGES[row])
        for version, seen in zip(versions, epochs, strict=True):
            np.testing.assert_array_equal(pixels_of(page, version), seen[row])


def test_the_page_is_self_contained_and_escapes_names(page: Path) -> None:
    found = Images(page)
    assert all(picture["alt"] and picture["width"] and picture["height"] for picture in found.pictures)
    for address in found.addresses:
        assert str(address).startswith(("data:image/", "#")) or (page.parent / str(address)).is_file()
    assert "cat & <b>mouse</b>" in found.text
    assert {str(address).split("/")[0] for address in found.addresses} == {
        "data:image",
        "#main",
        "pictures",
        "manifest.json",
    }
    assert any("some/<i>0.png" in text for text in found.text)
    assert "<b>" not in page.read_text()
    assert "<script" not in page.read_text()


def test_the_manifest_records_the_parameters(page: Path) -> None:
    manifest = json.loads((page.parent / "manifest.json").read_text())
    assert manifest["kind"] == "glassbox preview"
    assert AugmentSpec(**manifest["augment"]) == EVERYTHING
    made = [
        origin for picture in manifest["pictures"] for origin in picture["made_from"] if "epoch" in origin
    ]
    assert {(origin["row"], origin["epoch"]) for origin in made} == {
        (row, epoch) for row in range(ROWS) for epoch in (1, 2, 3)
    }
    for origin in made:
        expected = draw(EVERYTHING, OPTIONS.seed, origin["epoch"], [origin["row"], origin["row"]], DATA)[
            "affine"
        ][0]
        np.testing.assert_array_equal(np.float32(origin["parameters"]["affine"]), expected)


def test_the_report_of_a_run_shows_the_images_of_its_epochs(shards: Path, tmp_path: Path) -> None:
    config = {
        "augment": EVERYTHING.model_dump(mode="json"),
        "data": DATA.model_dump(mode="json"),
        "seed": OPTIONS.seed,
    }
    section = augmentation.build_section(Album(tmp_path), shards, "train", config, epoch_count=2)
    assert section is not None
    seen = [augment_as_training(epoch) for epoch in (1, 2)]
    assert section.figures["rows"] == epoch_order(ROWS, OPTIONS.seed, 1)[: augmentation.IMAGES].tolist()
    for image in section.values["images"]:
        assert [version.epoch for version in image.versions] == [1, 2]
        for version, pixels in zip(image.versions, seen, strict=True):
            picture = np.asarray(Image.open(tmp_path / version.picture.file))[::14, ::14]
            np.testing.assert_array_equal(picture, pixels[image.row])
            assert {fact.name for fact in version.facts} >= {"rotation", "flip", "erased"}
    html = load_templates().get_template("augmentation.html").render(values=section.values)
    assert html.count("<img") == augmentation.IMAGES * 3
    assert "<b>mouse" not in html
    for none in (None, {}, {"fill": "reflect"}):
        assert augmentation.build_section(None, shards, "train", config | {"augment": none}, 2) is None


def test_epochs_of_a_mix_show_the_images_they_train_on(shards: Path, tmp_path: Path) -> None:
    """The first set is drawn completely in every epoch, of the second one 3 of 7 images."""
    rows = [make_record(IMAGES[row], row % 2, f"other/{row}.png") for row in range(3)]
    small = write_shards(tmp_path / "small", ("cat & <b>mouse</b>", "dog"), {"train": rows}, 3)
    mix = DataSpec(image_size=(8, 8), mix={str(small): 1, str(shards): 1})
    reader = open_reader(shards, "train", mix)
    options = PreviewOptions(seed=5, rows=6, versions=3, global_batch=2)
    images = augment_images(shards, reader, mix, AugmentSpec(mixup=0.4), options)

    order = build_order(reader, mix, options.global_batch, options.seed)
    pairs = {}
    for epoch in (1, 2, 3):
        batches = EpochOrder(order, epoch).find_rows(range(3)).tolist()
        pairs[epoch] = {row: batch[1 - place] for batch in batches for place, row in enumerate(batch)}
    assert {image.row for image in images} == set(pairs[1])
    seen = {image.row: [version.epoch for version in image.versions] for image in images}
    assert seen == {row: [epoch for epoch in (1, 2, 3) if row in pairs[epoch]] for row in seen}
    assert any(len(epochs) < 3 for epochs in seen.values())
    names = reader.read_ids(range(10))
    for image in images:
        for version in image.versions:
            neighbour = Path(names[pairs[version.epoch][image.row]]).name
            (fact,) = version.facts
            assert fact.value == "no" or fact.value.endswith(neighbour)


def test_parameters_are_described() -> None:
    rows = np.array([0, 1])
    drawn = draw(EVERYTHING, 3, 1, rows, DATA)
    _, shares = apply_augmentations({"image": tf.constant(IMAGES[:2])} | drawn)
    facts = [
        {fact.name: fact.value for fact in listed}
        for listed in describe_draws(EVERYTHING, 3, 1, rows, DATA, shares.numpy())
    ]
    names = [
        "crop",
        "rotation",
        "shift",
        "shear",
        "zoom",
        "flip",
        "brightness",
        "contrast",
        "saturation",
        "hue",
        "erased",
    ]
    for place in (0, 1):
        kind = "cutmix" if drawn["cut"][place].any() else "mixup"
        assert list(facts[place]) == [*names, kind]
        assert facts[place][kind] == f"{1 - shares.numpy()[place]:.0%}"
        top, left, bottom, right = drawn["erase"][place]
        assert facts[place]["erased"] == (f"{(bottom - top) * (right - left):.0%}" if bottom else "no")
    turned = AugmentSpec(rotation=40)
    (angle,) = (fact for fact in describe_draws(turned, 3, 1, rows, DATA, None)[0])
    matrix = draw(turned, 3, 1, rows, DATA)["affine"][0]
    assert (
        angle.value
        == facts[0]["rotation"]
        == difference(float(np.rad2deg(np.arctan2(matrix[1, 0], matrix[0, 0]))), "°")
    )
    (shift,) = describe_draws(AugmentSpec(shift=0.2), 3, 1, rows, DATA, None)[0]
    _, _, x, _, _, y = draw(AugmentSpec(shift=0.2), 3, 1, rows, DATA)["affine"][0].reshape(-1)
    assert shift.value == facts[0]["shift"] == f"x {difference(100 * x, '%')} y {difference(100 * y, '%')}"


def test_numbers_carry_their_sign() -> None:
    assert [difference(value, "%") for value in (4.06, -4.06, 0.04, -0.04, 0.0)] == [
        "+4.1%",
        "\N{MINUS SIGN}4.1%",
        "0.0%",
        "0.0%",
        "0.0%",
    ]


def test_a_second_preview_replaces_the_first_with_the_same_bytes(
    page: Path, shards: Path, tmp_path: Path
) -> None:
    again = render_preview(shards, DATA, EVERYTHING, OPTIONS, tmp_path / "again")
    render_preview(shards, DATA, EVERYTHING, OPTIONS.model_copy(update={"rows": 1}), tmp_path / "again")
    assert len(Images(again).pictures) == 4
    render_preview(shards, DATA, EVERYTHING, OPTIONS, tmp_path / "again")
    one, two = (
        {p.relative_to(d): p.read_bytes() for p in d.rglob("*") if p.is_file()}
        for d in (page.parent, again.parent)
    )
    assert one == two


@pytest.mark.parametrize(
    ("augment", "options", "message"),
    [
        (AugmentSpec(), OPTIONS, "turned on"),
        (EVERYTHING, PreviewOptions(split="test"), "test"),
        (EVERYTHING, PreviewOptions(split="empty"), "split=empty"),
    ],
)
def test_nothing_to_show_is_an_error(
    augment: AugmentSpec, options: PreviewOptions, message: str, shards: Path, tmp_path: Path
) -> None:
    with pytest.raises(GlassboxError, match=message):
        render_preview(shards, DATA, augment, options, tmp_path / "page")
    assert not list(tmp_path.iterdir())


def test_a_directory_with_other_files_is_never_replaced(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"kind": "glassbox report"}')
    with pytest.raises(ConfigError, match="holds something else"):
        render_preview(shards, DATA, EVERYTHING, OPTIONS, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_a_crop_while_decoding_is_shown_as_decoded(shards: Path) -> None:
    spec = AugmentSpec(crop=(0.1, 0.5), crop_at="decode")
    images = augment_images(shards, open_reader(shards, "train", DATA), DATA, spec, OPTIONS)
    windows = set()
    for image in images:
        for version in image.versions:
            top, left, height, width = version.parameters["window"]
            windows.add((image.row, top, left, height, width))
            part = encode_png(IMAGES[image.row][top : top + height, left : left + width])
            np.testing.assert_array_equal(version.pixels, decode(tf.constant(part), DATA).numpy())
            (fact,) = version.facts
            assert fact.value.endswith(f"{width}\N{MULTIPLICATION SIGN}{height} pixels at x {left} y {top}")
    assert len(windows) > 2 * ROWS  # another one in every epoch

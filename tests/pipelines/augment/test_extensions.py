"""Augmentations from outside the package: files, modules and entry points, from the YAML to the pixels."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import yaml
from shard_samples import make_record, write_shards

from pipelines.augment.apply import apply_augmentations
from pipelines.augment.describe import describe_draws
from pipelines.augment.draw import draw, signature
from pipelines.augment.philox import fold_in, uniform
from pipelines.errors import ConfigError
from pipelines.input.batches import Batches
from pipelines.spec import AugmentSpec, DataSpec, check

DATA = DataSpec(image_size=(2, 3), channels=1)
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 2, 3, 1)).astype(np.uint8)

SOLARIZE = '''
"""Solarize: invert the values above a threshold, in some of the images."""

import numpy as np
from typing import Annotated
from pydantic import Field

from pipelines.augment.base import Fact, PixelAugmentation
from pipelines.settings import Share, Spec


class Solarize(PixelAugmentation):
    """Inverts every value from a threshold on."""

    class Settings(Spec):
        """Threshold and probability."""

        threshold: Annotated[float, Field(ge=0.0, le=256.0)] = 128.0
        probability: Share = 0.5

    streams = {"is_solarized": 0}

    def draw(self, numbers, image):
        is_solarized = numbers.is_active & (numbers.uniform("is_solarized") < self.settings.probability)
        return np.where(is_solarized, self.settings.threshold, 256.0)

    def apply(self, images, parameters):
        import tensorflow as tf

        return tf.where(images >= parameters[:, None, None, None], 255 - images, images)

    def describe(self, values, index):
        return Fact("solarized", "no" if values[index] > 255 else f"from {values[index]:.0f}")
'''

KINDS = '''
"""One augmentation of each other kind."""

import numpy as np

from pipelines.augment.base import ColourAugmentation, GeometricAugmentation, MixingAugmentation
from pipelines.augment.geometry import IDENTITY


class Transpose(GeometricAugmentation):
    """Swaps x and y, about the center."""

    def draw(self, numbers, image):
        return numbers.is_active

    def transform(self, values, image):
        return IDENTITY._replace(a=1.0 - values, b=1.0 * values, d=1.0 * values, e=1.0 - values)


class Negative(ColourAugmentation):
    """Inverts all values."""

    def draw(self, numbers, image):
        return np.where(numbers.is_active, -1.0, 1.0)

    def matrices(self, values, image):
        linear = values[:, None, None] * np.eye(image.channels)
        offset = np.where(values < 0, 255.0, 0.0)[:, None, None] * np.ones((image.channels, 1))
        return np.concatenate([linear, offset], axis=-1)


class Swap(MixingAugmentation):
    """Replaces an image by its neighbour."""

    is_compiled = True

    def draw(self, numbers, image):
        return np.where(numbers.is_active, 0.0, 1.0)

    def mix(self, images, neighbours, parameters):
        own = parameters[:, None, None, None]
        return own * images + (1 - own) * neighbours, parameters
'''


@pytest.fixture
def solarize(tmp_path: Path) -> str:
    path = tmp_path / "solarize.py"
    path.write_text(SOLARIZE)
    return f"{path}:Solarize"


@pytest.fixture
def kinds(tmp_path: Path) -> str:
    path = tmp_path / "kinds.py"
    path.write_text(KINDS)
    return str(path)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Installs a package with an entry point, and returns the name of the entry point."""
    site = tmp_path / "site"
    metadata = site / "solarize_package-1.0.dist-info"
    metadata.mkdir(parents=True)
    (site / "solarize_package.py").write_text(SOLARIZE)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: solarize-package\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[glassbox.augmentations]\nsolarize = solarize_package:Solarize\n"
    )
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, "solarize_package", raising=False)
    return "solarize"


def solarize_by_hand(images: np.ndarray, seed: int, epoch: int, rows: np.ndarray) -> np.ndarray:
    """Applies the augmentation with threshold 100 and probability 1/2 to real rows."""
    numbers = uniform(fold_in(seed, "Solarize"), epoch, rows, 1)[0]
    is_solarized = (rows >= 0) & (numbers < 0.5)
    inverted = np.where(images >= 100, 255 - images, images)
    return np.where(is_solarized[:, None, None, None], inverted, images)


def test_training_batches_have_the_exact_pixels(solarize: str, tmp_path: Path) -> None:
    records = [make_record(image[..., 0], 0, f"{row}.png") for row, image in enumerate(IMAGES)]
    shards = write_shards(tmp_path / "shards", ("ant",), {"train": records}, 3)
    spec = AugmentSpec(**{solarize: {"threshold": 100.0}, "flip": True})
    batches = Batches(shards, "train", DATA, 4, seed=8, augment=spec)
    train = tf.function(lambda batch: apply_augmentations(batch, spec)[0])
    solarized = 0
    for epoch in range(3):
        for batch in batches.epoch(epoch):
            rows = batch["row"].numpy()
            mirrored = np.where(
                batch["affine"].numpy()[:, :1, :1, None] < 0,
                batch["image"][:, :, ::-1],
                batch["image"],
            )
            expected = solarize_by_hand(mirrored.astype(np.float32), 8, epoch, rows)
            np.testing.assert_array_equal(train(batch), expected)
            np.testing.assert_array_equal(apply_augmentations(batch, spec)[0], expected)
            solarized += (batch["Solarize"].numpy() < 256).sum()
    assert 4 < solarized < 14  # of 18 images


def test_a_file_a_module_and_an_entry_point_draw_the_same(solarize: str, installed: str) -> None:
    specs = [AugmentSpec(**{key: True}) for key in (solarize, installed, "solarize_package:Solarize")]
    drawn = [draw(spec, 1, 2, range(50), DATA)["Solarize"] for spec in specs]
    assert 0 < (drawn[0] < 256).sum() < 50
    np.testing.assert_array_equal(drawn[1], drawn[0])
    np.testing.assert_array_equal(drawn[2], drawn[0])


def test_a_copy_of_the_file_draws_the_same(solarize: str, tmp_path: Path) -> None:
    copy = tmp_path / "code" / "2" / "solarize.py"
    copy.parent.mkdir(parents=True)
    copy.write_text(SOLARIZE)
    before = draw(AugmentSpec(**{solarize: True}), 1, 2, range(50), DATA)
    after = draw(AugmentSpec(**{f"{copy}:Solarize": True}), 1, 2, range(50), DATA)
    np.testing.assert_array_equal(before["Solarize"], after["Solarize"])


def test_the_settings_survive_yaml_and_pickle(solarize: str) -> None:
    spec = check(AugmentSpec, {"rotation": 5.0, solarize: {"probability": 0.25}}, "config.yaml")
    assert spec.model_dump(mode="json")[solarize] == {"threshold": 128.0, "probability": 0.25}
    text = yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False)
    again = check(AugmentSpec, yaml.safe_load(text), "config.yaml")
    assert again == spec == pickle.loads(pickle.dumps(spec))
    assert again != AugmentSpec(rotation=5.0)
    assert spec.list_changed() == [("rotation", 5.0), (solarize, {"threshold": 128.0, "probability": 0.25})]


@pytest.mark.parametrize("value", [False, None])
def test_an_augmentation_can_be_turned_off(solarize: str, value: bool | None) -> None:
    spec = AugmentSpec(**{solarize: value})
    assert spec == AugmentSpec()
    assert spec.model_dump() == AugmentSpec().model_dump()
    assert signature(spec, DATA) == {}


def test_built_in_draws_do_not_change(solarize: str) -> None:
    alone = draw(AugmentSpec(rotation=30, erase=0.5), 1, 2, range(20), DATA)
    together = draw(AugmentSpec(**{"rotation": 30, "erase": 0.5, solarize: True}), 1, 2, range(20), DATA)
    assert list(together) == ["affine", "erase", "Solarize"]
    for name, values in alone.items():
        np.testing.assert_array_equal(together[name], values)


def test_it_is_applied_after_erasing(solarize: str) -> None:
    spec = AugmentSpec(**{"fill_value": 200.0, solarize: True})
    parameters = {"erase": tf.constant([[0.0, 0.0, 1.0, 1.0]]), "Solarize": tf.constant([100.0])}
    found, _ = apply_augmentations({"image": tf.constant(IMAGES[:1]), **parameters}, spec)
    np.testing.assert_array_equal(found, np.full((1, 2, 3, 1), 55.0))


def test_the_preview_describes_it(solarize: str) -> None:
    spec = AugmentSpec(**{solarize: {"threshold": 100.0}})
    drawn = draw(spec, 1, 2, range(20), DATA)["Solarize"]
    facts = describe_draws(spec, 1, 2, range(20), DATA, None)
    assert [fact.value for (fact,) in facts] == ["no" if value > 255 else "from 100" for value in drawn]
    assert {fact.name for (fact,) in facts} == {"solarized"}


def test_without_a_description_the_drawn_values_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "pair.py"
    path.write_text(
        KINDS.replace("return numbers.is_active\n", "return numbers.is_active, 2.5 * numbers.is_active\n")
    )
    spec = AugmentSpec(**{f"{path}:Transpose": True})
    assert [fact.value for (fact,) in describe_draws(spec, 1, 2, [4, -1], DATA, None)] == [
        "True, 2.5",
        "False, 0.",
    ]


def test_an_edited_file_is_used_at_once(solarize: str) -> None:
    spec = AugmentSpec(**{solarize: {"probability": 1.0}})
    batch = {"image": tf.constant(IMAGES)} | draw(spec, 1, 0, range(6), DATA)
    inverted = np.where(IMAGES >= 128, 255 - IMAGES.astype(float), IMAGES)
    np.testing.assert_array_equal(apply_augmentations(batch, spec)[0], inverted)
    Path(solarize.rpartition(":")[0]).write_text(SOLARIZE.replace("255 - images", "images / 2"))
    halved = np.where(IMAGES >= 128, IMAGES / 2, IMAGES)
    np.testing.assert_array_equal(apply_augmentations(batch, spec)[0], halved)


@pytest.mark.parametrize("image_size", [(3, 3), (2, 2)])
def test_every_kind_can_come_from_outside(kinds: str, image_size: tuple[int, int]) -> None:
    keys = [f"{kinds}:{name}" for name in ("Transpose", "Negative", "Swap")]
    spec = AugmentSpec(**dict.fromkeys(keys, True))
    data = DataSpec(image_size=image_size)
    images = np.random.default_rng(1).integers(0, 256, (4, *image_size, 3)).astype(np.uint8)
    parameters = draw(spec, 1, 0, [3, 1, 0, -1], data)
    assert {name: values.shape[1:] for name, values in parameters.items()} == {
        name: shape for name, (shape, _) in signature(spec, data).items()
    }
    found, share = apply_augmentations({"image": tf.constant(images)} | parameters, spec)
    changed = 255.0 - images.transpose(0, 2, 1, 3)
    # the last image is padding: nothing happens to it, and its neighbour is not mixed
    np.testing.assert_allclose(found, [changed[1], changed[0], changed[2], images[3]], atol=1e-4)
    assert share.numpy().tolist() == [0, 0, 1, 1]


def test_mixing_from_outside_takes_turns_with_mixup(kinds: str) -> None:
    spec = AugmentSpec(**{"mixup": 1.0, "cutmix": 1.0, f"{kinds}:Swap": True})
    drawn = draw(spec, 1, 0, range(3000), DATA)
    is_mixed = np.stack([drawn["mix"] < 1, drawn["cut"].any(axis=1), drawn["Swap"] < 1])
    assert (is_mixed.sum(axis=0) == 1).all()
    assert (np.abs(is_mixed.mean(axis=1) - 1 / 3) < 0.05).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"solarise": 5}, r"a known key\. Received: solarise=5\. Fix: use solarize"),
        (
            {"{file}": {"treshold": 5.0}},
            r"a known key\. Received: .*:Solarize\.treshold=5\.0\. Fix: use threshold",
        ),
        (
            {"{file}": {"probability": 2.0}},
            r":Solarize\.probability: input should be less than or equal to 1",
        ),
        ({"{file}": 0.5}, r":Solarize as a group of settings: threshold, probability"),
        ({"{missing}": True}, r"Python file\. Received: augmentation=.*missing\.py"),
        ({"{file}x": True}, "Fix: use Solarize"),
        ({"pipelines.augment.philox:uniform": True}, "derives from .*PixelAugmentation.*augment.*=uniform"),
        ({"pipelines.augment.rotation:Rotation": True}, "name of its own.*name=rotation"),
        ({"{file}": True, "solarize": True}, "different names.*name=Solarize twice"),
    ],
)
def test_mistakes_are_named(
    settings: dict[str, object], message: str, solarize: str, installed: str, tmp_path: Path
) -> None:
    names = {"{file}": solarize, "{missing}": f"{tmp_path}/missing.py:Solarize", "{file}x": f"{solarize}x"}
    settings = {names.get(key, key): value for key, value in settings.items()}
    with pytest.raises(ConfigError, match=message):
        check(AugmentSpec, settings, "config.yaml")


def test_parameters_of_another_shape_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "wrong.py"
    path.write_text(
        SOLARIZE.replace("return np.where(is_solarized", "return 3 * np.where(is_solarized[:, None]")
    )
    spec = AugmentSpec(**{f"{path}:Solarize": True})
    with pytest.raises(ConfigError, match=r"shape \[4\] from Solarize\.draw\. Received: shape=\[4, 1\]"):
        draw(spec, 1, 0, range(4), DATA)

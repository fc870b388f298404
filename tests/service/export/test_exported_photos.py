"""On a hundred real photos, exported files give the probabilities of `glassbox predict`."""

from __future__ import annotations

import csv
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.cli import main
from service.export.formats import ANY_SIZE, FORMATS
from service.export.writers import open_export
from service.models import Task, build_model
from service.models.metadata import ModelMetadata, append_metadata

TOLERANCE = 1e-3  # that of the comparison after writing
PHOTOS = 100
FITS = {
    "stretch": {},
    "crop": {"fit": "crop", "resize": 80, "antialias": True},
    "pad": {"fit": "pad"},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "fit"), [("small_cnn", "stretch"), ("small_cnn", "crop"), ("vit_tiny", "pad")]
)
def test_photos_are_classified_as_by_predict(
    architecture: str, fit: str, shared: Path, tmp_path: Path
) -> None:
    """The model has fresh weights, whose probabilities are far from 0 and 1, where differences would hide."""
    folder = tmp_path / "photos"
    folder.mkdir()
    found = sorted((shared / "data/cats_and_dogs_filtered/validation").rglob("*.jpg"))
    for path in found[:: len(found) // PHOTOS][:PHOTOS]:
        (folder / path.name).write_bytes(path.read_bytes())
    model = build_model(architecture, Task((64, 64, 3), 3, (124.0, 116.0, 106.0), (65.0, 65.0, 65.0)))
    file = tmp_path / "model.keras"
    model.save(file)
    append_metadata(file, ModelMetadata(("c", "a", "b"), "", (64, 64), 3, **FITS[fit]))
    table = tmp_path / "table.csv"
    assert main(["predict", "--model", str(file), "--data", f"photos:{folder}", "--out", str(table)]) == 0
    with table.open() as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == PHOTOS
    expected = np.array([[float(row[name]) for name in ("c", "a", "b")] for row in rows])
    images = [np.asarray(Image.open(folder / Path(row["id"]).name).convert("RGB"))[None] for row in rows]
    names = [name for name, known in FORMATS.items() if all(map(find_spec, known.packages))]
    for name in names:
        out = tmp_path / name
        assert main(["export", str(file), "--format", name, "--out", str(out)]) == 0
        predict = open_export(FORMATS[name], out / FORMATS[name].file)
        answers = np.concatenate([predict(ANY_SIZE, image) for image in images])
        difference = np.abs(answers - expected).max()
        print(f"{architecture} {fit} {name}: {difference:.2g}")
        assert difference <= TOLERANCE
    assert expected.std(axis=0).max() > 10 * TOLERANCE  # the photos get different answers

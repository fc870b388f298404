"""ImageNet's layouts, names of classes and validation labels, on a folder of seven tiny photos."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from scipy.io import savemat

from pipelines.errors import ConfigError, DataError
from pipelines.records import Example
from pipelines.sources import SourceOptions, open_source
from pipelines.sources.base import Source
from pipelines.sources.matlab import describe_exit

WORDS = {
    "n01440764": "tench, Tinca tinca",
    "n02012849": "crane",
    "n03126707": "crane",
    "n03710637": "maillot",
    "n03710721": "maillot, tank suit",
}
NAMES = ("tench", "crane (n02012849)", "crane (n03126707)", "maillot", "maillot, tank suit")
MAPPING = "".join(f"{synset} {words}\n" for synset, words in WORDS.items())
# Numbers of the development kit, which are not in the order of the WordNet IDs
IDS = {"n01440764": 3, "n02012849": 1, "n03126707": 2, "n03710637": 5, "n03710721": 4}
TRUTH = ["n03126707", "n01440764"]  # classes of the two validation photos


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number, synset in enumerate(WORDS):
        add_photo(tmp_path / "train" / synset / f"{synset}_1.JPEG", number)
    for number in (1, 2):
        add_photo(tmp_path / "val" / f"ILSVRC2012_val_{number:08d}.JPEG", 100 + number)
    return tmp_path


def add_photo(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(simplejpeg.encode_jpeg(np.full((8, 8, 3), grey, np.uint8)))


def add_kaggle_files(root: Path) -> None:
    (root / "LOC_synset_mapping.txt").write_text(MAPPING)
    rows = [f"ILSVRC2012_val_{i:08d},{synset} 85 1 499 272 \n" for i, synset in enumerate(TRUTH, 1)]
    (root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(reversed(rows)))


def add_kit(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")]
    rows = [(IDS[synset], synset, words) for synset, words in WORDS.items()]
    savemat(folder / "meta.mat", {"synsets": np.array(rows, fields).reshape(-1, 1)})
    lines = [f"{IDS[synset]}\n" for synset in TRUTH]
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(lines))


def read_labels(source: Source, split: str) -> dict[str, str]:
    """Returns the name of the class of every photo."""
    examples = list(source.read(split, 0, source.counts()[split]))
    assert all(isinstance(example, Example) for example in examples)
    return {example.id: source.classes[example.label] for example in examples}


EXPECTED = {
    "val/ILSVRC2012_val_00000001.JPEG": "crane (n03126707)",
    "val/ILSVRC2012_val_00000002.JPEG": "tench",
}


def test_names_and_validation_labels_of_kaggles_files(root: Path) -> None:
    add_kaggle_files(root)
    source = open_source(f"imagenet:{root}")
    assert source.classes == NAMES
    assert read_labels(source, "validation") == EXPECTED
    train = read_labels(source, "train")
    assert train == {f"train/{s}/{s}_1.JPEG": name for s, name in zip(WORDS, NAMES, strict=True)}
    assert source.notes[:2] == (
        "class names: the first word for each WordNet ID in LOC_synset_mapping.txt",
        "labels of val: LOC_val_solution.csv",
    )


def test_the_numbers_of_the_development_kit_are_not_the_labels(root: Path) -> None:
    add_kit(root / "ILSVRC2012_devkit_t12" / "data")
    source = open_source(f"imagenet:{root}")
    assert source.classes == NAMES
    assert read_labels(source, "validation") == EXPECTED
    assert source.notes[1].startswith(
        "labels of val: ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt, whose numbers are"
    )


def test_kaggles_archive_is_found_below_its_folders(root: Path) -> None:
    inner = root / "ILSVRC" / "Data" / "CLS-LOC"
    inner.mkdir(parents=True)
    for folder in ("train", "val"):
        shutil.move(root / folder, inner / folder)
    add_kaggle_files(root)
    labels = read_labels(open_source(f"imagenet:{root}"), "validation")
    assert labels == {f"ILSVRC/Data/CLS-LOC/{photo}": name for photo, name in EXPECTED.items()}


def test_validation_folders_need_no_labels_and_names_may_be_missing(root: Path) -> None:
    for number, synset in enumerate(TRUTH, 1):
        photo = root / "val" / f"ILSVRC2012_val_{number:08d}.JPEG"
        (root / "val" / synset).mkdir()
        photo.rename(root / "val" / synset / photo.name)
    source = open_source(f"imagenet:{root}")
    assert source.classes == tuple(WORDS)
    assert list(read_labels(source, "validation").values()) != []
    assert set(read_labels(source, "validation").values()) == set(TRUTH)
    assert "WordNet IDs, because there is no LOC_synset_mapping.txt or" in source.notes[0]


def test_a_photo_without_label_is_rejected(root: Path) -> None:
    add_kaggle_files(root)
    add_photo(root / "val" / "ILSVRC2012_val_00000003.JPEG", 1)
    source = open_source(f"imagenet:{root}")
    items = list(source.read("validation", 0, 3))
    assert sorted(type(item).__name__ for item in items) == ["Example", "Example", "Rejected"]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("LOC_synset_mapping.txt", "tench n01440764\n", "line 1: 'tench n01440764'"),
        ("LOC_val_solution.csv", "a,b\n1,2\n", "Expected columns ImageId and PredictionString"),
        ("LOC_val_solution.csv", "ImageId,PredictionString\nx,tench 1\n", "a WordNet ID for every photo"),
    ],
)
def test_damaged_files_are_errors(root: Path, file: str, text: str, message: str) -> None:
    add_kaggle_files(root)
    (root / file).write_text(text)
    with pytest.raises(DataError) as error:
        open_source(f"imagenet:{root}")
    assert message in str(error.value)


@pytest.mark.parametrize(("code", "end"), [(-11, "SIGSEGV"), (3, "exit code 3")])
def test_the_end_of_the_process_that_reads_meta_is_named(code: int, end: str) -> None:
    assert describe_exit(code) == end


def test_what_is_missing_is_said(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"labels of the photos in val: LOC_val_solution\.csv"):
        open_source(f"imagenet:{root}")
    with pytest.raises(DataError, match="folders named by WordNet IDs"):
        open_source(f"imagenet:{root / 'val'}")
    with pytest.raises(ConfigError, match="no such folder"):
        open_source(f"imagenet:{root / 'none'}")
    with pytest.raises(ConfigError, match="leave --splits out"):
        open_source(f"imagenet:{root}", options=SourceOptions(splits="train=train"))
    add_kit(root)
    (root / "ILSVRC2012_validation_ground_truth.txt").write_text("3\n7\n")
    with pytest.raises(DataError, match="line 2: '7'"):
        open_source(f"imagenet:{root}")

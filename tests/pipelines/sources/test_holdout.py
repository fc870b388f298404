"""The share that is held out of every class."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.records import Example
from pipelines.sources import open_source
from pipelines.sources.holdout import DividedSource, hold_out, select_held_out


@given(st.lists(st.integers(-1, 4), max_size=60), st.floats(0.001, 0.999))
def test_every_class_gives_its_share(labels, share):
    is_held_out = select_held_out(labels, share)
    for label in set(labels):
        rows = np.flatnonzero(np.array(labels) == label)
        count = int(is_held_out[rows].sum())
        assert is_held_out[rows[len(rows) - count :]].all()  # the last ones
        if label < 0 or len(rows) == 1:
            assert count == 0
        else:
            assert 1 <= count < len(rows)
            assert abs(count - len(rows) * share) <= 1


class LabelledSource:
    """Numbered images, of which every fifth is of class 1."""

    name = "numbers"
    classes = ("a", "b")

    def counts(self):
        return {"train": 50, "test": 3}

    def labels(self, split):
        assert split == "train"
        return [int(index % 5 == 0) for index in range(50)]

    def read(self, split, start, stop):
        for index in range(start, stop):
            yield Example(b"", int(index % 5 == 0), f"{split}/{index}")

    def fingerprint(self):
        return "1"


def test_a_source_of_your_own_is_divided_class_by_class(caplog):
    caplog.set_level("INFO", "pipelines")
    source = hold_out(LabelledSource(), 0.2)
    assert caplog.messages == ["numbers: no validation split: 20 % of each class of train held out"]
    assert isinstance(source, DividedSource)
    assert source.counts() == {"train": 40, "validation": 10, "test": 3}
    items = {split: list(source.read(split, 0, count)) for split, count in source.counts().items()}
    assert sum(item.label for item in items["validation"]) == 2
    assert sum(item.label for item in items["train"]) == 8
    ids = [item.id for split in ("train", "validation") for item in items[split]]
    assert sorted(ids) == sorted(f"train/{index}" for index in range(50))
    assert [item.id for item in items["test"]] == ["test/0", "test/1", "test/2"]
    assert list(source.read("validation", 3, 7)) == items["validation"][3:7]
    assert source.notes == ("no validation split: 20 % of each class of train held out",)


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_files_are_divided_class_by_class(tmp_path, kind):
    import zipfile

    names = [f"a/{index}.png" for index in range(20)] + [f"b/{index}.png" for index in range(3)]
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in [*names, *(f"b/{index}.txt" for index in range(9))]:
            archive.writestr(name, name)
    if kind == "folder":
        zipfile.ZipFile(tmp_path / "x.zip").extractall(tmp_path / "x")
    source = hold_out(open_source(f"{kind}:{tmp_path}/x{'.zip' if kind == 'archive' else ''}"), 0.2)
    assert dict(source.counts()) == {"train": 27, "validation": 5}  # the text files stay in train
    held_out = list(source.read("validation", 0, 5))
    assert [item.label for item in held_out].count(1) == 1


def test_a_source_with_a_validation_split_or_without_labels_stays_as_it_is(tmp_path):
    class Unlabelled(LabelledSource):
        labels = None

    class Complete(LabelledSource):
        def counts(self):
            return {"train": 50, "validation": 1}

    for source in (Unlabelled(), Complete()):
        assert hold_out(source, 0.2) is source
    source = LabelledSource()
    assert hold_out(source, 0) is source

"""`match_classes`: classes of a model and of a data set are matched by name."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.errors import ConfigError
from service.inference.classes import list_names, match_classes


def test_the_same_names_in_the_same_order_change_no_label():
    match = match_classes(("cat", "dog"), ("cat", "dog"), "recorded in the model file")
    assert match.names == ("cat", "dog")
    assert match.map_labels([0, 1, 1]).tolist() == [0, 1, 1]
    assert match.note == "classes: by name (recorded in the model file)"


def test_names_in_another_order_are_mapped_and_stated():
    match = match_classes(("ant", "bee", "cat"), ("cat", "ant", "bee"))
    assert match.names == ("ant", "bee", "cat")
    assert match.map_labels(np.array([0, 1, 2, -1])).tolist() == [2, 0, 1, -1]
    assert match.note.endswith("the data has them in another order")


def test_unknown_and_missing_names_are_refused():
    expected = r"of the model: cat, dog.*classes=cat, eel \(unknown to the model: eel; missing: dog\)"
    with pytest.raises(ConfigError, match=expected):
        match_classes(("cat", "dog"), ("cat", "eel"))
    with pytest.raises(ConfigError, match=r"\(missing: dog\)"):
        match_classes(("cat", "dog"), ("cat",))
    with pytest.raises(ConfigError, match=r"\(unknown to the model: eel\)"):
        match_classes(("cat", "dog"), ("cat", "dog", "eel"))


def test_without_names_of_the_model_classes_are_matched_by_position_and_the_note_says_so():
    match = match_classes(None, ("cat", "dog"), "the file has no class names")
    assert match.map_labels([1, 0]).tolist() == [1, 0]
    assert match.note == ("classes: by position (the file has no class names): output 0 is 'cat', 1 is 'dog'")


def test_unicode_normalization_forms_of_a_name_are_the_same_class():
    match = match_classes(("\u00e4", "b"), ("a\u0308", "b"))
    assert match.names == ("\u00e4", "b")
    assert match.map_labels([0, 1]).tolist() == [0, 1]


def test_long_lists_of_names_are_cut():
    assert list_names([str(i) for i in range(20)]) == "0, 1, 2, 3, 4, 5, 6, 7, ... (20 in all)"

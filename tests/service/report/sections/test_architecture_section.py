"""The network at a glance: runs of equal blocks are one row with their sums."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import pytest

from service.report.analysis.architecture import Architecture, describe_architecture
from service.report.analysis.layer_times import LayerTimes
from service.report.analysis.network import Network
from service.report.sections.architecture import build_section, group_equal_blocks

L = keras.layers


def add_block(x: Any, name: str, convolution: Mapping[str, Any], joins_early: bool = False) -> Any:
    """A convolution, a ReLU and a second convolution with a shortcut around all three, or the first two."""
    y = L.Conv2D(4, **{"kernel_size": 3, "padding": "same", **convolution}, name=f"{name}_a")(x)
    y = L.ReLU(name=f"{name}_relu")(y)
    if joins_early:
        return L.Conv2D(4, 3, padding="same", name=f"{name}_b")(L.Add(name=f"{name}_sum")([x, y]))
    y = L.Conv2D(4, 3, padding="same", name=f"{name}_b")(y)
    return L.Add(name=f"{name}_sum")([x, y])


def describe(*blocks: Mapping[str, Any]) -> Architecture:
    """A network of a first convolution, residual blocks, and a head."""
    inputs = keras.Input((16, 16, 4))
    x = L.Conv2D(4, 3, padding="same", name="stem")(inputs)
    for number, options in enumerate(blocks, 1):
        x = add_block(x, f"block{number}", **({"convolution": {}} | options))
    outputs = L.Dense(2, name="logits")(L.GlobalAveragePooling2D(name="mean")(x))
    return describe_architecture(Network(keras.Model(inputs, outputs), head="logits"))


def list_groups(architecture: Architecture) -> list[list[str]]:
    return [[block.name for block in group] for group in group_equal_blocks(architecture)]


def test_equal_blocks_are_grouped_where_they_follow_each_other():
    other = {"convolution": {"use_bias": False}}
    assert list_groups(describe({}, {}, {}, other, {})) == [
        ["stem"],
        ["block1", "block2", "block3"],
        ["block4"],
        ["block5"],
        ["mean"],
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"convolution": {"kernel_size": 5}},
        {"convolution": {"activation": "tanh"}},
        {"convolution": {"dilation_rate": 2}},
        {"convolution": {"groups": 2}},
        {"convolution": {"dtype": "float16"}},
        {"convolution": {"trainable": False}},
        {"joins_early": True},
    ],
    ids=lambda options: next(iter(options.get("convolution", options))),
)
def test_blocks_that_differ_inside_are_not_equal(options):
    assert len(list_groups(describe({}, options))) == 4


def test_blocks_of_other_shapes_are_not_equal():
    inputs = x = keras.Input((16, 16, 4))
    for number in range(1, 4):
        x = L.Conv2D(4, 3, padding="same", name=f"conv{number}")(x)
        x = L.MaxPooling2D(name=f"pool{number}")(x)
    outputs = L.Dense(2, name="logits")(L.GlobalAveragePooling2D(name="mean")(x))
    architecture = describe_architecture(Network(keras.Model(inputs, outputs), head="logits"))
    assert list_groups(architecture) == [["conv1"], ["conv2"], ["conv3"], ["mean"]]


def test_blocks_of_the_same_size_and_another_shape_are_not_equal():
    inputs = keras.Input((16, 4, 4))
    x = L.Conv2D(4, 3, padding="same", name="stem")(inputs)
    for number in range(1, 4):  # 16 x 4 becomes 4 x 16 and back, with equal parameters and multiply-adds
        x = add_block(x, f"block{number}", {})
        x = L.Permute((2, 1, 3), name=f"block{number}_turn")(x)
    outputs = L.Dense(2, name="logits")(L.GlobalAveragePooling2D(name="mean")(x))
    groups = list_groups(describe_architecture(Network(keras.Model(inputs, outputs), head="logits")))
    assert len(groups) >= 4
    assert [group for group in groups if len(group) > 1] == []


def test_blocks_whose_branches_are_wired_otherwise_are_not_equal():
    def build(*lengths: tuple[int, int]) -> Architecture:
        """Blocks of a main path and two side branches; only the lengths of the branches differ."""
        inputs = keras.Input((16, 16, 4))
        x = L.Conv2D(4, 3, padding="same", name="stem")(inputs)
        for number, pair in enumerate(lengths, 1):
            ends = []
            for branch, length in enumerate((4, *pair)):
                y = x
                for position in range(length):
                    y = L.Conv2D(4, 3, padding="same", name=f"block{number}_{branch}_{position}")(y)
                ends.append(y)
            x = L.Add(name=f"block{number}_sum")(ends)
        outputs = L.Dense(2, name="logits")(L.GlobalAveragePooling2D(name="mean")(x))
        return describe_architecture(Network(keras.Model(inputs, outputs), head="logits"))

    assert len(list_groups(build((1, 2), (1, 2)))) == 3
    assert len(list_groups(build((1, 2), (2, 1)))) == 4


def test_what_matters_in_training_only_does_not_make_a_difference():
    assert len(list_groups(describe({}, {"convolution": {"kernel_initializer": "zeros"}}))) == 3


def test_a_row_of_equal_blocks_has_their_sums_and_holds_each_of_them():
    architecture = describe({}, {}, {})
    seconds = dict.fromkeys(architecture.layers, 1.0)
    section = build_section(architecture, LayerTimes(seconds, images=1, device="CPU"))
    rows = section.values["rows"]
    assert [len(row["blocks"]) for row in rows] == [1, 3, 1]
    merged = rows[1]
    assert merged["name"] == "block1 \N{EN DASH} block3"
    assert sum(row["parameters"] for row in rows) == architecture.parameters
    assert sum(row["multiply_adds"] for row in rows) == architecture.multiply_adds
    assert sum(row["time_share"] for row in rows) == pytest.approx(1)
    assert "% of the time is spent in block1 \N{EN DASH} block3" in section.values["summary"]
    assert merged["field"] == merged["blocks"][2]["field"] != merged["blocks"][0]["field"]

"""Blocks of networks: by names, by structure, and by where feature maps shrink."""

from __future__ import annotations

import keras
import pytest

from service.models import MODELS, Task
from service.report.analysis.blocks import Block, find_blocks
from service.report.analysis.network import Network
from service.report.analysis.operation_graph import trace_graph

L = keras.layers


def list_blocks(model: keras.Model) -> tuple[Block, ...]:
    nodes = trace_graph(Network(model, head="logits"))
    blocks = find_blocks(nodes)
    listed = [name for block in blocks for name in block.all_layers]
    assert sorted(listed) == sorted(node.name for node in nodes)  # every layer once
    return blocks


def build(name: str, shape: tuple[int, int, int] = (32, 32, 3)) -> keras.Model:
    return getattr(keras.applications, name)(weights=None, input_shape=shape, classes=2)


def test_a_plain_network_ends_a_block_where_its_maps_shrink():
    inputs = keras.Input((32, 32, 3))
    x = L.Rescaling(1 / 255, name="scale")(inputs)
    x = L.Conv2D(4, 3, padding="same", name="a")(x)
    x = L.BatchNormalization(name="b")(x)
    x = L.Conv2D(4, 3, padding="same", name="c")(x)
    x = L.MaxPooling2D(name="d")(x)
    x = L.Dropout(0.5, name="e")(x)
    x = L.Conv2D(4, 3, padding="same", name="f")(x)
    x = L.Conv2D(4, 3, strides=2, padding="same", name="g")(x)
    x = L.Flatten(name="h")(x)
    x = L.Dense(8, name="i")(x)
    blocks = list_blocks(keras.Model(inputs, L.Dense(2, name="j")(x)))
    assert [(block.kind, "".join(block.layers)) for block in blocks] == [
        ("input", "scale"),
        ("convolution", "abcde"),
        ("convolution", "f"),
        ("convolution", "g"),
        ("head", "hij"),
    ]


def test_residual_blocks_without_names_are_what_runs_in_parallel():
    inputs = keras.Input((16, 16, 4))
    x = L.Conv2D(4, 3, padding="same", name="stem")(inputs)
    for number in (1, 2):
        y = L.Conv2D(4, 3, padding="same", name=f"x{number}")(x)
        y = L.ReLU(name=f"y{number}")(y)
        x = L.Add(name=f"z{number}")([x, y])
    blocks = list_blocks(keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling2D()(x))))
    assert [(block.kind, block.layers) for block in blocks[:3]] == [
        ("convolution", ("stem",)),
        ("residual", ("x1", "y1", "z1")),
        ("residual", ("x2", "y2", "z2")),
    ]
    (shortcut,) = blocks[1].branches
    assert (shortcut.kind, shortcut.layers, shortcut.end) == ("shortcut", (), "z1")


def test_vgg16_has_five_blocks_and_a_head():
    blocks = list_blocks(build("VGG16"))
    assert [block.name for block in blocks] == ["block1", "block2", "block3", "block4", "block5", "flatten"]
    assert [len(block.layers) for block in blocks] == [3, 3, 4, 4, 4, 4]
    assert blocks[2].layers[-1] == "block3_pool"


def test_a_shortcut_with_layers_is_a_side_branch():
    blocks = {block.name: block for block in list_blocks(build("ResNet50V2"))}
    assert len(blocks) == 19
    first = blocks["conv2_block1"]
    assert first.kind == "residual"
    assert first.layers[0] == "conv2_block1_preact_bn"  # the names tell that it is not the end of the stem
    (branch,) = first.branches
    assert (branch.kind, branch.layers) == ("shortcut", ("conv2_block1_0_conv",))
    assert blocks["conv2_block3"].branches[0].layers[0].startswith("max_pooling2d")
    assert blocks["conv2_block2"].branches[0].layers == ()
    assert list(blocks)[-1] == "post"


def test_squeeze_and_excitation_is_a_gate_beside_the_main_path():
    blocks = {block.name: block for block in list_blocks(build("MobileNetV3Small"))}
    assert list(blocks)[2:14] == ["expanded_conv", *(f"expanded_conv_{n}" for n in range(1, 11)), "conv_1"]
    block = blocks["expanded_conv_4"]
    assert [branch.kind for branch in block.branches] == ["gate", "shortcut"]
    assert block.branches[0].layers[0] == "expanded_conv_4_squeeze_excite_avg_pool"
    assert len(block.branches[0].layers) == 7
    assert block.layers[-3:] == (
        "expanded_conv_4_project",
        "expanded_conv_4_project_bn",
        "expanded_conv_4_add",
    )


def test_the_blocks_of_a_nested_backbone_are_those_of_the_backbone():
    backbone = keras.applications.MobileNetV3Small(
        weights=None, include_top=False, input_shape=(32, 32, 3), include_preprocessing=False
    )
    model = keras.Sequential([L.Input((32, 32, 3)), backbone, L.GlobalAveragePooling2D(), L.Dense(2)])
    blocks = list_blocks(model)
    flat = [block.name for block in list_blocks(keras.Model(backbone.input, L.Flatten()(backbone.output)))]
    assert [block.name for block in blocks[:-1]] == [f"{backbone.name}/{name}" for name in flat[:-1]]
    assert blocks[-1].kind == "head"


def test_a_transformer_has_a_block_per_attention():
    model = MODELS.get("vit_tiny")(Task((28, 28, 1), 10, (0.1,), (0.3,)))
    blocks = list_blocks(model)
    assert [(block.name, block.kind) for block in blocks] == [
        ("standardized", "input"),
        ("patches", "patches"),
        *((f"block{number}", "transformer") for number in range(1, 5)),
        ("norm", "head"),
    ]
    assert [branch.end for branch in blocks[2].branches] == ["block1_attention_sum", "block1_mlp_sum"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count"), [("EfficientNetV2B0", 25), ("ConvNeXtTiny", 24), ("InceptionV3", 14)]
)
def test_large_networks(name, count):
    blocks = list_blocks(build(name, (96, 96, 3)))
    assert len(blocks) == count
    assert all(len(block.name.split(":")) == 1 for block in blocks)

"""Networks pretrained on ImageNet by Keras, as bases for transfer learning.

The layers of a base are not nested in a submodel, so they keep their names. Preprocessing is part of the
model. Stochastic depth is off, so that a frozen base always computes the same features for an image.
"""

from __future__ import annotations

from functools import partial

import keras
from keras import layers

from service.models.base import Task
from service.models.layers import add_head
from service.pretrained import BASES, check_images

FEATURES = "features"  # name of the first layer after the base
CAFFE_MEAN = (123.68, 116.779, 103.939)  # mean of ImageNet, red to blue, that VGG16 was trained with


def build_base(name: str, **settings: object) -> keras.Model:
    """Builds a base as Keras does, without its classifier.

    Args:
        name: One of `service.pretrained.BASES`.
        settings: Arguments of the function in `keras.applications`.
    """
    return getattr(keras.applications, BASES[name].name)(include_top=False, **settings)


def _preprocess(name: str, image: keras.KerasTensor) -> keras.KerasTensor:
    """Scales pixels of 0 to 255 as in the training of the base; other bases begin with such a layer."""
    if name == "vgg16":
        centred = layers.Normalization(mean=CAFFE_MEAN, variance=(1.0,) * 3, dtype="float32", name="centred")(
            image
        )
        return keras.ops.flip(centred, axis=-1)  # red, green, blue -> blue, green, red
    if name in ("xception", "resnet50v2"):
        return layers.Rescaling(1 / 127.5, offset=-1.0, dtype="float32", name="rescaled")(image)
    return image


def _build_on_base(name: str, task: Task) -> keras.Model:
    check_images(name, task.shape)
    image = keras.Input(task.shape, name="image")
    base = build_base(name, weights=None, input_tensor=_preprocess(name, image), input_shape=task.shape)
    for layer in base.layers:
        if isinstance(layer, layers.Dropout):
            layer.rate = 0.0

    if name == "vgg16":  # the head of the published experiment
        x = layers.Flatten(name=FEATURES)(base.output)
        x = layers.Dense(256, activation="relu", name="hidden")(x)
    else:
        x = layers.GlobalAveragePooling2D(name=FEATURES)(base.output)
        x = layers.Dropout(0.2, name="dropout")(x)
    return keras.Model(image, add_head(x, task.classes), name=name)


vgg16 = partial(_build_on_base, "vgg16")
xception = partial(_build_on_base, "xception")
resnet50v2 = partial(_build_on_base, "resnet50v2")
efficientnetv2b0 = partial(_build_on_base, "efficientnetv2b0")
convnexttiny = partial(_build_on_base, "convnexttiny")
mobilenetv3small = partial(_build_on_base, "mobilenetv3small")
mobilenetv3large = partial(_build_on_base, "mobilenetv3large")

"""Networks that Keras has trained on ImageNet, as bases for other classes; flat, so that their layers keep their names.

Preprocessing belongs to the base and is part of the model. Stochastic depth is off: a frozen base says the same of an
image each time.
"""

from __future__ import annotations

import keras
from keras import layers

from service.models import MODELS, Task, head
from service.pretrained import BASES, check_images

FEATURES = "features"  # the layer behind the base
CAFFE_MEAN = (123.68, 116.779, 103.939)  # of ImageNet, red to blue, as VGG16 was trained with


def application(name: str, **settings: object) -> keras.Model:
    """A base as Keras builds it, without its classifier.

    Args:
        name: One of `service.pretrained.BASES`.
        settings: For `keras.applications`.
    """
    return getattr(keras.applications, BASES[name].name)(include_top=False, **settings)


def _preprocessed(name: str, image: keras.KerasTensor) -> keras.KerasTensor:
    """Pixels of 0 to 255 as the base was trained on them; the bases left out here begin with that themselves."""
    if name == "vgg16":
        x = layers.Normalization(mean=CAFFE_MEAN, variance=(1.0,) * 3, dtype="float32", name="centred")(image)
        return keras.ops.flip(x, axis=-1)  # blue, green, red
    if name in ("xception", "resnet50v2"):
        return layers.Rescaling(1 / 127.5, offset=-1.0, dtype="float32", name="rescaled")(image)
    return image


def _transferred(name: str, task: Task) -> keras.Model:
    check_images(name, task.shape)
    image = keras.Input(task.shape, name="image")
    base = application(name, weights=None, input_tensor=_preprocessed(name, image), input_shape=task.shape)
    for layer in base.layers:
        if isinstance(layer, layers.Dropout):
            layer.rate = 0.0
    if name == "vgg16":  # as published
        x = layers.Dense(256, activation="relu", name="hidden")(layers.Flatten(name=FEATURES)(base.output))
    else:
        x = layers.Dropout(0.2, name="dropout")(layers.GlobalAveragePooling2D(name=FEATURES)(base.output))
    return keras.Model(image, head(x, task.classes), name=name)


def _register(name: str) -> None:
    MODELS.register(name)(lambda task: _transferred(name, task))


for _name in BASES:
    _register(_name)

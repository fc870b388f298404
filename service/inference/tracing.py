"""Functions that are traced to a graph once, before they are called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import tensorflow as tf


def trace_once(function: Callable[..., Any], *signature: tf.TensorSpec) -> Callable[..., Any]:
    """Traces a function of tensors to one graph, for all tensors that fit a signature.

    TensorFlow warns of "excessive retracing" when it finds that many of the latest calls of one piece of code
    were traced, even if each was the first call of a graph for another layer, or another model. A graph that
    is traced before its first call is not counted, and nothing else can trace this one again.

    Args:
        function: The function; whatever variables it uses exist already.
        signature: Shapes and types of its arguments; None for a length that varies.
    """
    graph = tf.function(function, input_signature=signature, autograph=False)
    graph.get_concrete_function()
    return cast("Callable[..., Any]", graph)

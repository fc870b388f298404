"""Norms of weights and gradients per layer: in closed form, before clipping, and of nested models."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from step_samples import build_linear_steps, iterate, make_batch

from service.runs import Run
from service.training.layer_norms import name_weights, summarize_layers

L = keras.layers


@pytest.mark.parametrize("compiled", [{"xla_update": False}, {}, {"xla": True}])
def test_the_squared_gradients_of_the_updates_add_up(compiled: dict[str, bool]) -> None:
    _, steps = build_linear_steps(0.0, 0.0, clip_norm=0.1, **compiled)
    # At zero weights the gradient of an example is (1/2 - label) * x, and of the bias 1/2 - label.
    first = make_batch([[2, 0], [0, 4], [9, 9]], [1, 0, 1], [1.0, 1.0, 0.0])
    second = make_batch([[6, 0], [0, 0], [9, 9]], [0, 0, 1], [1.0, 1.0, 0.0])
    steps.train(iterate([first, second]), 0, 2)
    kernel, bias, updates = steps.gradient_norms.read()
    assert kernel == pytest.approx((0.5**2 + 1.0**2) + 1.5**2, rel=1e-6)
    assert bias == pytest.approx(0.0**2 + 0.5**2, rel=1e-6)
    assert updates == 2


def test_an_epoch_starts_at_zero_or_where_it_was_stopped() -> None:
    _, steps = build_linear_steps(0.0)
    batch = make_batch([[2, 0]], [1])
    steps.train_batch(batch, 0)
    saved = steps.gradient_norms.read()
    steps.start(2, 0, seed=5)
    assert steps.gradient_norms.read() == (0.0, 0.0, 0.0)
    steps.start(1, 1, seed=5, squared_gradients=saved)
    steps.train_batch(batch, 1)
    assert steps.gradient_norms.read() == tuple(2 * value for value in saved)


def test_an_update_that_is_skipped_does_not_count() -> None:
    _, steps = build_linear_steps(0.0)
    steps.train_batch(make_batch([[np.inf, 0]], [1]), 0)
    assert steps.gradient_norms.read() == (0.0, 0.0, 0.0)


def test_several_accumulated_batches_are_one_gradient() -> None:
    _, steps = build_linear_steps(0.0, accumulate=2)
    batches = [make_batch([[4, 0]], [0]), make_batch([[0, 8]], [0])]
    steps.train(iterate(batches), 0, 1, micro=2)
    kernel, _, updates = steps.gradient_norms.read()
    assert kernel == pytest.approx(1.0**2 + 2.0**2, rel=1e-6)  # of the mean over both
    assert updates == 1


def test_norms_of_a_layer_are_over_all_its_weights() -> None:
    weights = [np.full((2, 2), 3.0, np.float32), np.full(4, 4.0, np.float32), np.ones(1, np.float32)]
    norms = summarize_layers(["a", "a", "b"], weights, (8.0, 24.0, 0.0, 2.0))
    assert norms == {
        "a": {"weights": 10.0, "gradients": 4.0},
        "b": {"weights": 1.0, "gradients": 0.0},
    }


def test_layers_of_a_nested_model_have_its_name() -> None:
    inner = keras.Sequential([L.Input((4,)), L.Dense(3, name="dense")], name="backbone")
    inputs = L.Input((4,))
    model = keras.Model(inputs, L.Dense(2, name="dense")(inner(inputs)))
    assert name_weights(model, model.trainable_variables) == ["backbone/dense"] * 2 + ["dense"] * 2


def test_norms_of_later_epochs_are_replaced(tmp_path) -> None:
    run = Run(tmp_path)
    assert run.layers() == []
    for epoch in (1, 2, 3, 2):
        run.write_layers(epoch, {"a": {"weights": float(epoch), "gradients": 0.5}})
    assert [record["epoch"] for record in run.layers()] == [1, 2]
    run.remove_layers(after=1)
    assert run.layers() == [{"epoch": 1, "layers": {"a": {"weights": 1.0, "gradients": 0.5}}}]


def test_the_sums_are_exact_numbers_for_a_checkpoint() -> None:
    _, steps = build_linear_steps(0.0)
    steps.train_batch(make_batch([[0.1, 0.3]], [1]), 0)
    sums = steps.gradient_norms.read()
    steps.start(1, 1, seed=5, squared_gradients=sums)
    assert steps.gradient_norms.read() == sums

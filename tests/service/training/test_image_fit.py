"""A run on cropped images: its model knows how they were fitted, and scores the same when it is evaluated."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_samples import config_for, fit_run, noise_shards

from service.inference.evaluate import evaluate
from service.inference.options import PredictOptions

pytestmark = pytest.mark.heavy


def test_a_trained_model_is_evaluated_on_images_fitted_as_in_training(tmp_path: Path) -> None:
    shards = noise_shards(tmp_path / "shards")
    data = {"image_size": [12, 6], "fit": "crop"}
    run = fit_run(tmp_path / "run", config_for(shards, data=data, epochs=1))
    recorded = run.metrics()[-1]["val_loss"]
    evaluation = evaluate(str(run.path), str(shards))
    assert evaluation.loss == pytest.approx(recorded, rel=1e-5)
    stretched = evaluate(str(run.path), str(shards), options=PredictOptions(fit="stretch"))
    assert abs(stretched.loss - recorded) > 1e-4

"""The presets of ImageNet against their papers. Nothing is trained."""

from __future__ import annotations

import numpy as np
import pytest

from service.config import RunConfig, load_config
from service.training.schedule import run_rates, updates_per_epoch

IMAGES = 1_281_167


def rates_of(config: RunConfig) -> tuple[np.ndarray, int]:
    """Returns the learning rate of every update for ImageNet, and the updates of an epoch."""
    updates = updates_per_epoch(-(-IMAGES // config.global_batch), config.accumulate)
    return run_rates(config, updates), updates


@pytest.mark.parametrize(("batch", "peak"), [(256, 0.1), (1024, 0.4), (8192, 3.2)])
def test_the_classic_recipe_has_the_rates_of_goyal_et_al(batch: int, peak: float) -> None:
    config = load_config("imagenet_resnet50", "shards", [f"global_batch={batch}"])
    rates, epoch = rates_of(config)
    assert len(rates) == 90 * epoch
    # "start from a learning rate of eta, and increment it by a constant amount at each iteration"
    np.testing.assert_allclose(rates[[0, 5 * epoch]], [0.1, peak], rtol=1e-6)
    np.testing.assert_allclose(np.diff(rates[: 5 * epoch + 1]), (peak - 0.1) / (5 * epoch), atol=3e-7)
    # "reduce it by 1/10 at the 30-th, 60-th, and 80-th epoch"
    before = [30 * epoch - 1, 60 * epoch - 1, 80 * epoch - 1, 90 * epoch - 1]
    np.testing.assert_allclose(rates[before], [peak, peak / 10, peak / 100, peak / 1000], rtol=1e-5)
    np.testing.assert_allclose(
        rates[np.array(before[:-1]) + 1], [peak / 10, peak / 100, peak / 1000], rtol=1e-5
    )


@pytest.mark.parametrize(
    ("name", "rate", "epochs"), [("imagenet_resnet50_a3", 8e-3, 100), ("imagenet_resnet50_a2", 5e-3, 300)]
)
def test_the_recipes_of_resnet_strikes_back_have_its_rates(name: str, rate: float, epochs: int) -> None:
    rates, epoch = rates_of(load_config(name, "shards"))
    assert len(rates) == epochs * epoch
    assert int(rates.argmax()) == 5 * epoch
    np.testing.assert_allclose(rates[5 * epoch], rate, rtol=1e-6)
    np.testing.assert_allclose(rates[epoch], rate / 5, rtol=1e-5)
    middle = 5 * epoch + (epochs - 5) * epoch // 2
    np.testing.assert_allclose(rates[middle], rate / 2, rtol=1e-3)
    assert rates[-1] < 1e-6


def test_settings_of_the_tables() -> None:
    """Those of Wightman, Touvron and Jegou (2021), and of section 5.1 of Goyal et al. (2017)."""
    classic, a2, a3 = (load_config(f"imagenet_resnet50{suffix}", "s") for suffix in ("", "_a2", "_a3"))
    for config in (a2, a3):
        assert (config.global_batch, config.optimizer.name, config.optimizer.weight_decay) == (
            2048,
            "lamb",
            0.02,
        )
        assert (config.loss, config.label_smoothing, config.ema) == ("bce", 0.0, None)
        assert config.augment is not None
        assert (config.augment.mixup, config.augment.cutmix, config.augment.erase) == (0.1, 1.0, 0.0)
        assert config.data.resize == int(224 / 0.95)
    assert a2.augment is not None
    assert a3.augment is not None
    assert (a2.augment.randaugment, a2.data.repeats, a2.augment.size) == (7, 3, None)
    assert (a3.augment.randaugment, a3.data.repeats, a3.augment.size) == (6, 1, (160, 160))
    assert a2.model_options == {"stochastic_depth": 0.05}
    assert a3.model_options == {}
    assert (classic.optimizer.momentum, classic.optimizer.l2, classic.optimizer.nesterov) == (
        0.9,
        1e-4,
        False,
    )
    assert (classic.data.resize, classic.label_smoothing, classic.loss) == (256, 0.0, "cross_entropy")

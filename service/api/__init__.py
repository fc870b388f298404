"""The public interface of glassbox for notebooks and scripts.

    import glassbox

    shards = glassbox.build_shards("folder:photos", "data/photos")
    run = glassbox.train("demo", shards, "runs/first", local=True)
    run.metrics().to_pandas()
    run.report()

`import glassbox` is fast: TensorFlow is imported by the first function that needs it, and Ray only by
functions that use a cluster. Every error a user can correct is a `GlassboxError`.
"""

from pipelines.errors import ConfigError, DataError, GlassboxError, TrainingError
from pipelines.spec import AugmentSpec, DataSpec, ShardSpec

from .datasets import Dataset
from .explanations import Activations, Heatmaps, activations, heatmaps
from .models import evaluate, export, load_model, predict
from .plans import plan
from .reports import look, preview, report
from .runs import TrainedRun, load_config, load_run, resume, train
from .shards import ShardSet, build_shards, open_shards

__all__ = [
    "Activations",
    "AugmentSpec",
    "ConfigError",
    "DataError",
    "DataSpec",
    "Dataset",
    "GlassboxError",
    "Heatmaps",
    "ShardSet",
    "ShardSpec",
    "TrainedRun",
    "TrainingError",
    "activations",
    "build_shards",
    "evaluate",
    "export",
    "heatmaps",
    "load_config",
    "load_model",
    "load_run",
    "look",
    "open_shards",
    "plan",
    "predict",
    "preview",
    "report",
    "resume",
    "train",
]

"""How many operations TensorFlow launches for an update, next to the compiled programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "count_operations.py"
LIMIT = 60
pytestmark = pytest.mark.heavy  # the script loads TensorFlow


@pytest.mark.parametrize(
    "network", ["small", pytest.param("resnet50", marks=pytest.mark.slow)], ids=["small", "resnet50"]
)
def test_an_update_is_a_few_programs_and_one_sum_per_replica(network: str) -> None:
    environment = os.environ | {"GLASSBOX_LOGICAL_DEVICES": "2"}
    output = subprocess.run(
        [sys.executable, SCRIPT, network], env=environment, check=True, text=True, stdout=subprocess.PIPE
    ).stdout
    recipes = {summary["recipe"]: summary for summary in map(json.loads, output.splitlines())}
    assert set(recipes) == {"plain", "everything"}
    for summary in recipes.values():
        assert summary["sums"] == 2, summary
        assert summary["operations"] + summary["programs"] < LIMIT, summary
    assert recipes["plain"]["programs"] == 4  # before and after the sum, on each of two replicas

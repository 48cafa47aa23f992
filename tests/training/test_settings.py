import json
import math

from training.settings import BiasInit, SaeSettings, TrainingSettings, config_of
from training.variants import TopKTraining


def test_a_configuration_is_plain_json() -> None:
    assert config_of(SaeSettings(neuron_count=1024, variant=TopKTraining(k=16))) == {
        "neuron_count": 1024,
        "variant": {"name": "topk", "k": 16, "precision": "float32"},
        "inputs": "scaled",
    }


def test_json_knows_no_infinity() -> None:
    settings = TrainingSettings(
        step_count=10,
        batch_rows=4,
        learning_rate=1e-3,
        dead_after_samples=64,
        bias_init=BiasInit.GEOMETRIC_MEDIAN,
        seed=0,
        gradient_clip=math.inf,
    )
    config = config_of(settings)
    assert config["gradient_clip"] is None
    assert json.loads(json.dumps(config, allow_nan=False)) == config

"""Libraries of the ecosystem take the model, the processor and the metric unchanged, offline."""

import subprocess
import sys

import datasets
import evaluate
import pandas
import pytest
from sklearn.metrics import confusion_matrix

from modeling_vit_mnist.checkpoints.folder import load_checkpoint
from modeling_vit_mnist.training.metrics import VitMnistMetric

from .conftest import ROOT, SAMPLE, TINY

NUM_SAMPLES = 100


@pytest.fixture(scope="module")
def run_evaluator():
    """
    `evaluate.evaluator`, given the model and the processor. It does not accept a ready pipeline: evaluate 0.4.6 would
    look for transformers' TensorFlow classes, which transformers 5 has removed.
    """
    model, processor = load_checkpoint(TINY)
    data = datasets.load_dataset(str(SAMPLE), split="test").select(range(NUM_SAMPLES))
    evaluator = evaluate.evaluator("image-classification")

    def run(metric, **options) -> dict:
        return evaluator.compute(
            model, data, metric=metric, feature_extractor=processor, label_mapping=model.config.label2id, device=-1,
            **options,
        )  # fmt: skip

    return run


@pytest.fixture
def own(run_script, tmp_path) -> pandas.DataFrame:
    """Labels and predictions of run_inference.py."""
    output = tmp_path / "predictions.csv"
    done = run_script(
        "run_inference.py", "--model", TINY, "--dataset_name", SAMPLE, "--num_samples", NUM_SAMPLES,
        "--output", output,
    )  # fmt: skip
    assert done.code == 0, done.err
    return pandas.read_csv(output)


def test_evaluator_and_run_inference_agree(run_evaluator, own):
    results = run_evaluator(VitMnistMetric())
    assert 0.9 < results["accuracy"] < 1  # with errors to compare
    assert results["accuracy"] == (own["label"] == own["prediction"]).mean()
    expected = confusion_matrix(own["label"], own["prediction"], labels=range(10))
    assert results["confusion_matrix"] == expected.tolist()


def test_evaluator_bootstraps_the_accuracy(run_evaluator, own):
    """With the metric loaded by `evaluate.load`."""
    metric = evaluate.load(str(ROOT / "modeling_vit_mnist" / "training" / "metrics.py"), "accuracy")
    results = run_evaluator(metric, strategy="bootstrap", n_resamples=100, random_state=0)["accuracy"]
    accuracy = (own["label"] == own["prediction"]).mean()
    low, high = results["confidence_interval"]
    assert results["score"] == accuracy and low < accuracy < high <= 1
    assert results["standard_error"] == pytest.approx((accuracy * (1 - accuracy) / NUM_SAMPLES) ** 0.5, rel=0.3)


PIPELINE = """
import sys
import modeling_vit_mnist
from transformers import AutoProcessor, pipeline

print(type(AutoProcessor.from_pretrained(sys.argv[1])).__name__)
(best,) = pipeline("image-classification", model=sys.argv[1])(sys.argv[2], top_k=1)
print(best["label"])
"""


def test_a_pipeline_of_a_folder_asks_nothing(tmp_path):
    """Where the package is imported, no code of the folder is needed: there is nothing to trust."""
    command = [sys.executable, "-c", PIPELINE, TINY, TINY / "digit-7.png"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["VitMnistImageProcessor", "7"]  # and no question, which would be printed here

"""Other libraries of the ecosystem take the model, the processor and the metric as they are, offline."""

import datasets
import evaluate
import pandas
import pytest
from sklearn.metrics import confusion_matrix

from modeling_vit_mnist import hub
from modeling_vit_mnist.metrics import VitMnistMetric

from .conftest import ROOT, SAMPLE


CHECKPOINT = ROOT / "vit-mnist-tiny"
NUM_SAMPLES = 100


@pytest.fixture(scope="module")
def run_evaluator():
    """
    `evaluate.evaluator`, which makes a pipeline of the model and the processor. (evaluate 0.4.6 fails on a pipeline
    that is already made: it asks for transformers' TensorFlow classes, which transformers 5 has no longer.)
    """
    model, processor = hub.load_checkpoint(CHECKPOINT)
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
        "run_inference.py", "--model", CHECKPOINT, "--dataset_name", SAMPLE, "--num_samples", NUM_SAMPLES,
        "--output", output,
    )  # fmt: skip
    assert done.code == 0, done.err
    return pandas.read_csv(output)


def test_evaluator_measures_what_run_inference_does(run_evaluator, own):
    results = run_evaluator(VitMnistMetric())
    assert 0.9 < results["accuracy"] < 1  # with mistakes to compare
    assert results["accuracy"] == (own["label"] == own["prediction"]).mean()
    expected = confusion_matrix(own["label"], own["prediction"], labels=range(10))
    assert results["confusion_matrix"] == expected.tolist()


def test_evaluator_bootstraps_the_accuracy(run_evaluator, own):
    """With the metric as `evaluate.load` gives it."""
    metric = evaluate.load(str(ROOT / "modeling_vit_mnist" / "metrics.py"), "accuracy")
    results = run_evaluator(metric, strategy="bootstrap", n_resamples=100, random_state=0)["accuracy"]
    accuracy = (own["label"] == own["prediction"]).mean()
    low, high = results["confidence_interval"]
    assert results["score"] == accuracy and low < accuracy < high <= 1
    assert results["standard_error"] == pytest.approx((accuracy * (1 - accuracy) / NUM_SAMPLES) ** 0.5, rel=0.3)

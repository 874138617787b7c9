"""The metrics against values computed by hand."""

import numpy as np
import pytest

from modeling_vit_mnist.training.metrics import VitMnistMetric, expected_calibration_error


def test_the_confusion_matrix_and_what_follows_from_it():
    confusion = [[3, 1, 0], [1, 2, 1], [0, 0, 2]]  # rows: true classes
    pairs = [
        (true, predicted) for true in range(3) for predicted in range(3) for _ in range(confusion[true][predicted])
    ]
    references, predictions = zip(*pairs, strict=True)
    probabilities = 0.1 + 0.7 * np.eye(3)[list(predictions)]
    results = VitMnistMetric().compute(predictions=probabilities, references=references)
    assert results["confusion_matrix"] == confusion
    assert results["accuracy"] == 7 / 10
    assert results["per_class_accuracy"] == [3 / 4, 2 / 4, 2 / 2]
    # F1 = 2 * correct / (true + predicted), for each class.
    assert results["macro_f1"] == pytest.approx((6 / (4 + 4) + 4 / (4 + 3) + 4 / (2 + 3)) / 3)
    assert results["expected_calibration_error"] == pytest.approx(0.8 - 0.7)


def test_classes_instead_of_probabilities():
    results = VitMnistMetric().compute(predictions=[0, 1, 1, 3], references=[0, 1, 2, 1])
    assert results["accuracy"] == 0.5
    assert results["macro_f1"] == pytest.approx((1 + 0.5 + 0 + 0) / 4)
    assert results["per_class_accuracy"] == [1, 0.5, 0, None]
    assert results["confusion_matrix"] == [[1, 0, 0, 0], [0, 1, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert "expected_calibration_error" not in results


def test_batches_can_be_added():
    metric = VitMnistMetric()
    metric.add_batch(predictions=[1, 2], references=[1, 1])
    metric.add_batch(predictions=[0], references=[0])
    assert metric.compute()["accuracy"] == pytest.approx(2 / 3)


def test_one_metric_alone():
    classes = {"predictions": [0, 1, 1, 3], "references": [0, 1, 2, 1]}
    everything = VitMnistMetric().compute(**classes)
    for name in ("accuracy", "macro_f1", "per_class_accuracy", "confusion_matrix"):
        assert VitMnistMetric(name).compute(**classes) == {name: everything[name]}
    with pytest.raises(ValueError, match=r"one of accuracy, macro_f1, .*, got 'expected_calibration_error'"):
        VitMnistMetric("expected_calibration_error").compute(**classes)  # of probabilities only
    probabilities = VitMnistMetric("expected_calibration_error").compute(predictions=[[0.2, 0.8]], references=[1])
    assert probabilities == {"expected_calibration_error": pytest.approx(0.2)}


def test_calibration_error_by_hand():
    # Confidences 0.9 (right), 0.9 (wrong), 0.6 (right): bins of 15 hold {0.9, 0.9} and {0.6}.
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])
    by_hand = 2 / 3 * abs(0.5 - 0.9) + 1 / 3 * abs(1 - 0.6)
    assert expected_calibration_error(probabilities, np.array([0, 1, 1])) == pytest.approx(by_hand)


def test_calibration_error_at_its_ends():
    certain = np.eye(2)[[0, 1, 0]]
    assert expected_calibration_error(certain, np.array([0, 1, 0])) == 0
    assert expected_calibration_error(certain, np.array([1, 0, 1])) == 1


@pytest.mark.parametrize(
    ("predictions", "references", "says"),
    [
        ([], [], "at least one prediction"),
        ([[np.nan, 1.0]], [0], "finite probabilities"),
        ([[np.inf, 0.0]], [0], "finite probabilities"),
        ([[-3.0, 4.0]], [0], "finite probabilities"),
        ([[2.0, 5.0]], [0], "finite probabilities"),  # logits
        ([[0.5, 0.5]], [2], "References must be classes from 0 to 1, got 2"),
        ([[0.5, 0.5]], [-100], "References must be classes from 0 to 1, got -100"),
        ([1, -1], [1, 1], "Predictions must be classes from 0, got -1"),
        ([1, 1], [1, -100], "References must be classes from 0, got -100"),
    ],
)
def test_what_is_no_class_is_refused(predictions, references, says):
    with pytest.raises(ValueError, match=says):
        VitMnistMetric().compute(predictions=predictions, references=references)

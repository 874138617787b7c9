"""The metric against scikit-learn and against values worked out by hand."""

import numpy as np
import pytest
import sklearn.metrics

from modeling_vit_mnist.metrics import VitMnistMetric, expected_calibration_error


def test_against_scikit_learn():
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.full(10, 0.3), 500)
    references = np.array([generator.choice(10, p=p) for p in probabilities])
    predictions = probabilities.argmax(1)
    results = VitMnistMetric().compute(predictions=probabilities, references=references)
    assert results["accuracy"] == sklearn.metrics.accuracy_score(references, predictions)
    assert results["macro_f1"] == pytest.approx(sklearn.metrics.f1_score(references, predictions, average="macro"))
    assert np.array_equal(results["confusion_matrix"], sklearn.metrics.confusion_matrix(references, predictions))
    recall = sklearn.metrics.recall_score(references, predictions, average=None)
    assert results["per_class_accuracy"] == pytest.approx(list(recall))


def test_classes_instead_of_probabilities():
    results = VitMnistMetric().compute(predictions=[0, 1, 1, 3], references=[0, 1, 2, 1])
    assert results["accuracy"] == 0.5
    assert results["per_class_accuracy"] == [1, 0.5, 0, None]
    assert results["confusion_matrix"] == [[1, 0, 0, 0], [0, 1, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert "expected_calibration_error" not in results


def test_batches_can_be_added():
    metric = VitMnistMetric()
    metric.add_batch(predictions=[1, 2], references=[1, 1])
    metric.add_batch(predictions=[0], references=[0])
    assert metric.compute()["accuracy"] == pytest.approx(2 / 3)


def test_one_of_them_alone():
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

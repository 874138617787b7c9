"""Accuracy and related metrics as an `evaluate.Metric` that works offline."""

import datasets
import evaluate
import numpy as np


class VitMnistMetric(evaluate.Metric):
    """Classification metrics in one pass.

    `compute(predictions=..., references=...)` takes integer classes `references` of shape `(n,)`. `predictions` are
    integer classes `(n,)` or probabilities `(n, classes)`. It returns

    - `accuracy`: fraction of correct predictions;
    - `macro_f1`: F1 averaged over the classes among references or predictions, as scikit-learn does. A class without
      references counts as 0;
    - `per_class_accuracy`: list of `classes` fractions, `None` for a class without references;
    - `confusion_matrix`: `classes` lists of `classes` counts, rows the references, columns the predictions;
    - `expected_calibration_error`, for probabilities only.

    It raises `ValueError` for no images, classes out of range, and probabilities that do not sum to 1.

    `VitMnistMetric("accuracy")` returns one of these alone, which the bootstrap of `evaluate.evaluator` requires.
    """

    def _info(self) -> evaluate.MetricInfo:
        kinds = (datasets.Value("int64"), datasets.List(datasets.Value("float64")))
        features = [datasets.Features({"predictions": kind, "references": datasets.Value("int64")}) for kind in kinds]
        description = self.__class__.__doc__
        return evaluate.MetricInfo(
            description=description, citation="", inputs_description=description, features=features
        )

    def add_batch(self, *, predictions=None, references=None, **kwargs):
        """As `evaluate.Metric.add_batch`, which fails on an empty batch without a reason."""
        if predictions is not None and not len(predictions):
            raise ValueError("The metrics need at least one prediction, got none.")
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def _compute(self, predictions, references) -> dict:
        from sklearn.metrics import confusion_matrix, f1_score

        predictions, references = np.asarray(predictions), np.asarray(references)
        _check(predictions, references)
        probabilities = predictions if predictions.ndim == 2 else None
        classes = predictions if probabilities is None else probabilities.argmax(1)
        num_classes = 1 + max(classes.max(), references.max()) if probabilities is None else probabilities.shape[1]
        confusion = confusion_matrix(references, classes, labels=range(num_classes))
        per_class = zip(confusion.diagonal(), confusion.sum(1), strict=True)
        results = {
            "accuracy": float((classes == references).mean()),
            "macro_f1": float(f1_score(references, classes, average="macro", zero_division=0)),
            "per_class_accuracy": [float(correct / count) if count else None for correct, count in per_class],
            "confusion_matrix": confusion.tolist(),
        }
        if probabilities is not None:
            results["expected_calibration_error"] = expected_calibration_error(probabilities, references)
        if self.config_name == "default":
            return results
        if self.config_name not in results:
            raise ValueError(f"The metric must be one of {', '.join(results)}, got {self.config_name!r}.")
        return {self.config_name: results[self.config_name]}


def _check(predictions: np.ndarray, references: np.ndarray) -> None:
    """Raise `ValueError` for values that the metrics would silently count as a class."""
    num_classes = np.inf
    if predictions.ndim == 2:
        num_classes = predictions.shape[1]
        if not (predictions.min() >= 0 and np.allclose(predictions.sum(1), 1, atol=0.01)):
            raise ValueError("Predictions must be classes, or finite probabilities that sum to 1 for each image.")
    for name, classes in (("Predictions", predictions), ("References", references)):
        outside = classes[(classes < 0) | (classes >= num_classes)]
        if classes.ndim == 1 and outside.size:
            limit = f"from 0 to {num_classes - 1}" if predictions.ndim == 2 else "from 0"
            raise ValueError(f"{name} must be classes {limit}, got {outside[0]}.")


def expected_calibration_error(probabilities: np.ndarray, references: np.ndarray) -> float:
    """Mean gap between confidence and accuracy over 15 bins of equal width, each open below and closed above, weighted
    by the fraction of images in each (Guo et al., 2017, https://arxiv.org/abs/1706.04599). 0 is perfect calibration.

    Args:
        probabilities (`np.ndarray` of shape `(n, classes)`): Rows that sum to 1.
        references (`np.ndarray` of shape `(n,)`): Integer classes.
    """
    confidence = probabilities.max(1)
    correct = probabilities.argmax(1) == references
    bins = 15
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    # In a bin, (fraction of images) * |accuracy - confidence| is |sum of (correct - confidence)| / n.
    return float(np.abs(np.bincount(which, weights=correct - confidence)).sum() / len(correct))

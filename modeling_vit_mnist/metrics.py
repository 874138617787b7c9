"""Accuracy and its friends as an `evaluate.Metric`, which needs no network."""

import datasets
import evaluate
import numpy as np


class VitMnistMetric(evaluate.Metric):
    """
    Classification metrics in one pass.

    `compute(predictions=..., references=...)` takes integer classes `references` of shape `(n,)`, and as
    `predictions` either integer classes `(n,)` or probabilities `(n, classes)`. It returns

    - `accuracy`: fraction of right predictions;
    - `macro_f1`: F1 averaged over the classes that occur, each counting the same;
    - `per_class_accuracy`: list of `classes` fractions, `None` for a class that does not occur;
    - `confusion_matrix`: `classes` lists of `classes` counts, rows the references, columns the predictions;
    - `expected_calibration_error`, given probabilities: gap between confidence and accuracy, averaged over 15 bins of
      equal width by the fraction of images in each (Guo et al., 2017, https://arxiv.org/abs/1706.04599).

    `VitMnistMetric("accuracy")` returns one of these alone, which the bootstrap of `evaluate.evaluator` needs: it
    takes numbers only.
    """

    def _info(self) -> evaluate.MetricInfo:
        reference = datasets.Value("int64")
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=self.__class__.__doc__,
            features=[
                datasets.Features({"predictions": datasets.Value("int64"), "references": reference}),
                datasets.Features({"predictions": datasets.List(datasets.Value("float64")), "references": reference}),
            ],
        )

    def _compute(self, predictions, references) -> dict:
        from sklearn.metrics import confusion_matrix, f1_score

        predictions, references = np.asarray(predictions), np.asarray(references)
        probabilities = predictions if predictions.ndim == 2 else None
        classes = predictions if probabilities is None else probabilities.argmax(1)
        num_classes = 1 + max(classes.max(), references.max()) if probabilities is None else probabilities.shape[1]
        confusion = confusion_matrix(references, classes, labels=range(num_classes))
        counts = confusion.sum(1)
        results = {
            "accuracy": float((classes == references).mean()),
            "macro_f1": float(f1_score(references, classes, average="macro", zero_division=0)),
            "per_class_accuracy": [
                float(right / count) if count else None
                for right, count in zip(confusion.diagonal(), counts, strict=True)
            ],
            "confusion_matrix": confusion.tolist(),
        }
        if probabilities is not None:
            results["expected_calibration_error"] = expected_calibration_error(probabilities, references)
        if self.config_name == "default":
            return results
        if self.config_name not in results:
            raise ValueError(f"The metric must be one of {', '.join(results)}, got {self.config_name!r}.")
        return {self.config_name: results[self.config_name]}


def expected_calibration_error(probabilities: np.ndarray, references: np.ndarray, bins: int = 15) -> float:
    """
    How far confidence is from accuracy (Guo et al., 2017): 0 is perfect calibration, 1 the worst.

    Args:
        probabilities (`np.ndarray` of shape `(n, classes)`): Rows that sum to 1.
        references (`np.ndarray` of shape `(n,)`): Integer classes.
        bins (`int`): Number of bins of equal width that confidences fall into, each open below and closed above.
    """
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == references
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    # Within a bin, (fraction of images) * |accuracy - confidence| is |sum of (right - confidence)| / n.
    return float(np.abs(np.bincount(which, weights=right - confidence, minlength=bins)).sum() / len(right))

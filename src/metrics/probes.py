"""What a simple classifier reads from codes: scikit-learn, scaled, fitted on train, chosen on validation."""

from typing import Any, NamedTuple

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)  # C of the logistic regression
NEIGHBOURS = (1, 5, 15, 50)


class Labelled(NamedTuple):
    """Codes ``[N, D]`` and their labels ``[N]``."""

    codes: np.ndarray
    labels: np.ndarray


def linear_probe(train: Labelled, val: Labelled, test: Labelled) -> dict[str, Any]:
    """Multinomial logistic regression; its strength of regularisation is chosen on validation. See :func:`choose`."""
    return choose("C", {c: LogisticRegression(C=c, max_iter=2_000) for c in STRENGTHS}, train, val, test)


def nearest_neighbours(train: Labelled, val: Labelled, test: Labelled) -> dict[str, Any]:
    """k-nearest neighbours; k is chosen on validation. See :func:`choose`."""
    counts = [k for k in NEIGHBOURS if k <= len(train.codes)]
    return choose("k", {k: KNeighborsClassifier(k) for k in counts}, train, val, test)


def choose(
    name: str, candidates: dict[Any, ClassifierMixin], train: Labelled, val: Labelled, test: Labelled
) -> dict[str, Any]:
    """Test figures of the classifier with the best validation accuracy: ``accuracy`` (all 0 to 1),
    ``balanced_accuracy`` (mean over classes), ``auroc`` (one against the rest, mean over classes; None where a class
    is missing), ``validation_accuracy``, and the chosen value under ``name``.
    """
    fitted = {key: make_pipeline(StandardScaler(), model).fit(*train) for key, model in candidates.items()}
    scores = {key: accuracy_score(val.labels, model.predict(val.codes)) for key, model in fitted.items()}
    best = max(scores, key=scores.get)
    predicted = fitted[best].predict(test.codes)
    return {
        "accuracy": float(accuracy_score(test.labels, predicted)),
        "balanced_accuracy": float(balanced_accuracy_score(test.labels, predicted)),
        "auroc": area_under_roc(fitted[best], test),
        "validation_accuracy": float(scores[best]),
        name: best,
    }


def area_under_roc(model: Pipeline, test: Labelled) -> float | None:
    """Area under the ROC curve; the mean over classes, each against the rest. None where test lacks a class."""
    if not np.array_equal(np.unique(test.labels), model.classes_):
        return None
    probabilities = model.predict_proba(test.codes)
    if probabilities.shape[1] == 2:
        return float(roc_auc_score(test.labels, probabilities[:, 1]))
    return float(roc_auc_score(test.labels, probabilities, multi_class="ovr"))

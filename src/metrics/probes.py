"""Simple classifiers of codes, by scikit-learn: fitted on train, chosen on validation, scored on test."""

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
    """Score multinomial logistic regression, its regularisation C chosen on validation. See :func:`choose`."""
    return choose("C", {c: LogisticRegression(C=c, max_iter=2_000) for c in STRENGTHS}, train, val, test)


def nearest_neighbours(train: Labelled, val: Labelled, test: Labelled) -> dict[str, Any]:
    """Score k-nearest neighbours, k chosen on validation. See :func:`choose`."""
    counts = [k for k in NEIGHBOURS if k <= len(train.codes)]
    return choose("k", {k: KNeighborsClassifier(k) for k in counts}, train, val, test)


def choose(
    name: str, candidates: dict[Any, ClassifierMixin], train: Labelled, val: Labelled, test: Labelled
) -> dict[str, Any]:
    """Return the test scores (0 to 1) of the classifier with the best validation accuracy, on standardized codes.

    They are ``accuracy``, ``balanced_accuracy`` (mean over classes), ``auroc`` (see :func:`area_under_roc`) and
    ``validation_accuracy``; the chosen value is under ``name``.

    Args:
        name: of the value that is chosen.
        candidates: a classifier for each value.
        train, val, test: codes and labels to fit on, to choose on and to score on.
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
    """Return the area under the ROC curve, of more than two classes the mean of one against the rest.

    It is None if the test labels lack a class.
    """
    if not np.array_equal(np.unique(test.labels), model.classes_):
        return None
    probabilities = model.predict_proba(test.codes)
    if probabilities.shape[1] == 2:
        return float(roc_auc_score(test.labels, probabilities[:, 1]))
    return float(roc_auc_score(test.labels, probabilities, multi_class="ovr"))

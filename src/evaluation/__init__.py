"""The evaluation of a trained model: one function for each part, which returns a dictionary for ``metrics.json``.

Training ends with :func:`src.evaluation.likelihood.tested`; ``python -m src.evaluate`` runs every part of
:data:`src.evaluation.suite.PARTS`.
"""

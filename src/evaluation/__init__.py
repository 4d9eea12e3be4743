"""What can be said of a trained model in figures: a function a part, each a plain dictionary for ``metrics.json``.

Training ends with :func:`src.evaluation.likelihood.tested`; ``python -m src.evaluate`` runs every part of
:data:`src.evaluation.suite.PARTS`.
"""

"""Training speed of ``src.train`` beside loops written by hand: ``python -m src.benchmark``. Nothing imports it."""

"""Measures of a VAE: pure functions, and torchmetrics that accumulate them."""

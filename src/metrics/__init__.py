"""Metrics of a VAE: pure functions and torchmetrics, which import no other room of this project."""

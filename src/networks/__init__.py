"""Encoder and decoder bodies: tensors in, tensors out; no loss, no Lightning."""

"""LightningModules: one base class, one file a variant."""

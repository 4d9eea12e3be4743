"""LightningDataModules: one base class, one file a data-set family."""

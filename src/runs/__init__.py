"""A run and its folder: made, trained, recorded, read back."""

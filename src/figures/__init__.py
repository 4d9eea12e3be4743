"""Pictures: tensors in, matplotlib figures or image grids out. Knows no Trainer, no model and no file."""

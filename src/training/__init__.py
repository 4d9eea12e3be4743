"""Train a model: its optimizer, and the callbacks of Lightning's trainer."""

"""What the parts of ``python -m src.benchmark`` measure, and how."""

"""How a model is trained: what Lightning calls, and what it is told."""

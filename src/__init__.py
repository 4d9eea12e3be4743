"""Train, compare and use variational autoencoders on images.

Kept free of imports: ``python -m src.train`` must answer a typo before torch is loaded.
"""

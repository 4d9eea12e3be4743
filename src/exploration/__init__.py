"""Pictures of a trained model: a predictor in, figures out."""

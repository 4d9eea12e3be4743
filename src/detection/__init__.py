"""Which images are not normal: scores of a trained model beside baselines that need none."""

"""The data and training pipeline: from photos to shards, from shards to a trained network."""

"""Trained models as folders on a store and in the MLflow registry."""

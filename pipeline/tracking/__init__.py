"""What MLflow is told: runs, parameters, metrics and pictures, without secrets."""

"""What a person or a cluster runs: one thin entry file a job."""

"""Which block, at which timestep, knows most about a phrase: small decoders on cached features. Paper, figure 4."""

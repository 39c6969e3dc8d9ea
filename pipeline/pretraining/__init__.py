"""Pretraining a small latent diffusion model on generated scenes: data, loop and stages, on torch alone."""

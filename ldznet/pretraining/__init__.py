"""Pretraining a small latent diffusion model: networks in Stable Diffusion's topology, their losses, a sampler."""

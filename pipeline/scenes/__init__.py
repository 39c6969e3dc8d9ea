"""Scenes: named clip-art composed on backgrounds, with exact masks and true phrases, from a seed alone."""

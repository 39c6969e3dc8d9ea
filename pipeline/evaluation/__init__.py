"""Scoring of trained networks and other systems on cached sets."""

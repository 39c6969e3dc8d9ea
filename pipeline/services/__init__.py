"""Servers that the project itself starts, on the machine it runs on."""

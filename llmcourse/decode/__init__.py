"""Turning a model into text: caches, sampling, generation."""

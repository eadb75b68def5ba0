"""Weights of other libraries' models."""

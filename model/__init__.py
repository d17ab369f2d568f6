"""Llama: configuration, forward pass, weights, and generation."""

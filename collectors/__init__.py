"""Environments, specialists and demonstrations."""

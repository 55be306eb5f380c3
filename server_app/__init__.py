"""Flower ServerApp: run configuration to strategy, central evaluation, results."""

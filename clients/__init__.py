"""Flower ClientApp: one file for each method half, with the same stems as the strategies."""

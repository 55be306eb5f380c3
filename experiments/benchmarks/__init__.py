"""Commands that measure speed as ratios; README.md says how to read them."""

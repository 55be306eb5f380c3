"""Named experiments, comparisons, reports and the leansplit command."""

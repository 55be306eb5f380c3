"""Language models of the transformers library, cut after a block, with adapters."""

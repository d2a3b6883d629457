"""Programs beside the project: a baseline of boosted trees, and the export of weights for transformers."""

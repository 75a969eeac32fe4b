"""The public PTransforms, one per file."""

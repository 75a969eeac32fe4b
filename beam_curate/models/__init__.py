"""The CLIP image tower, its preprocessing, the score heads, and where their weights come from."""

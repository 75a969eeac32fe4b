"""File formats: tar, Parquet, the manifest, and whole publishing on any Beam file system."""

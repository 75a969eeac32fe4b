"""The demonstration model: a tiny image tower and two heads fitted to made-up pictures. It knows nothing else."""

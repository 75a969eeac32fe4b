"""The demonstration model: a tiny random image tower and two heads fitted to made-up pictures. It knows nothing else."""

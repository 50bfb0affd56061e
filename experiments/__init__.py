"""Experiments: one readable file each, on the machinery of base, sweep and report."""

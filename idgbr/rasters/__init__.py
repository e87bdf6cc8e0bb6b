"""Rasters in and out: grids, labels, probabilities, windows, edges."""

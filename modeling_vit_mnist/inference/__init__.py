"""Predictions for datasets and image files; tables and pictures of data, networks and results."""

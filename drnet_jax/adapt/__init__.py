"""Adaptation: a trained network made fit for other resolutions, in minutes and without labels."""

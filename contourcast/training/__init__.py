"""Fitting networks, and measuring methods against known truth."""

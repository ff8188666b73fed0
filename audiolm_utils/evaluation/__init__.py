"""Metrics with intervals, and measured time and memory."""

"""Recipes, running or loading one, and results with their provenance."""

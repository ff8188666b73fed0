"""The audio language model, its parts, and the pinned pocket weights."""

"""Small, fast audio language models: data, models, training, evaluation and the study around them."""

__version__ = "0.1.0"

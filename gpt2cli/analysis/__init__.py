"""What the model thinks of a text: scores, features, and what is built on them. Nothing here prints."""

"""A trained model handed on: a Hugging Face folder with a card, a GGUF file, a repository of the hub."""

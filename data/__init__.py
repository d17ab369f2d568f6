"""What the model reads: files from the Hub, tokens, and conversations."""

"""What both engines use: models from disk, the output head, scoring, text of tokens, updates."""

"""Other projects' models to ours and back: files, settings and tokenizers; models/convert.py holds the tables."""

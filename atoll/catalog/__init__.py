"""Text of fleet files and tables -> nouns. Opens no file; every error names file and line."""

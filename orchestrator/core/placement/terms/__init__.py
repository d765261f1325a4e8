"""One cost term a file: its unit, formula, source and failure mode in the docstring. `registry` puts them together."""

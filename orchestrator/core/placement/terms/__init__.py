"""One cost term a file: its unit, formula, source and failure mode in the docstring. `registry` puts them together.

A term that stands still between decisions is a function of `inputs.Inputs`, one array over the rows of a class. A term that moves
with the fleet is a column (`COLUMN`) of what the kernel writes for every row (`rows.Out`).
"""

"""Figures of this machine: `make bench` prints them. Nothing here asserts a time."""

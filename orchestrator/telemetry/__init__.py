"""Logs and metrics: what operators see of the program itself. Decides nothing about the fleet."""

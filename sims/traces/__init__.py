"""Traces: jobs in order of arrival, from files read piece by piece, from the records of other services, or made up by a generator."""

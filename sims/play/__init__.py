"""Runs of a whole fleet in virtual time: the orchestrator's machine, an agent's machine and a plant for each site, and a trace of jobs."""

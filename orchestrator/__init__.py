"""The orchestrator: places jobs, keeps promises. `core` decides and is pure; everything beside it acts."""

"""The simulated world: the real machines of orchestrator and agents under simulated networks, stores, sites and clocks."""

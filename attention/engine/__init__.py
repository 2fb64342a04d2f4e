"""How controls get into the network: hooks, the source branch, one run's state, the host's wrappers."""

"""The command line, one module per noun. It speaks to an orchestrator through `atoll.client` and loads servers only to start them."""

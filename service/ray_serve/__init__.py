"""The stages, the ledger and the gateway as Ray Serve deployments."""

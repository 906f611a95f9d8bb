"""The stages and the gateway as Ray Serve deployments."""

"""Load tests: they speak HTTP only, and import none of the service's packages."""

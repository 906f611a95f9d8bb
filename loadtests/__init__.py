"""Load tests of a running service. They speak HTTP only and import none of the service's packages."""

"""Load tests of a running service. They use HTTP only and import none of the service's packages."""

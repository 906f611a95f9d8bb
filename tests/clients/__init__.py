"""What clients send and read: programs as data, libraries by running them against the service."""

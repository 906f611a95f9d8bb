"""Throughput, latency and replicas, predicted from operations and a device's speed."""

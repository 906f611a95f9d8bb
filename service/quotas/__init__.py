"""Limits of API keys: requests a minute; images and device-seconds a day, spend a month."""

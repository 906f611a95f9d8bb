"""Tests of the operator's filters."""

"""Small wrong changes of the product, each with the tests that should fail on it."""

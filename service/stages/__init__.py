"""The three stages as plain classes that know nothing of Ray; each owns one thread, which alone touches its network."""

"""The three stages, independent of Ray; each runs its network on a thread of its own."""

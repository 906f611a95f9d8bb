"""What every process of the service shares: how it imports large libraries, how it ends asyncio tasks."""

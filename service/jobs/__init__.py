"""Jobs: requests in the database, each drawn by the gateway that holds its lease (docs/adr/0018)."""

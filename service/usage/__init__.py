"""Usage accounting: events from the stages, the ledger that joins them with requests, and the report."""

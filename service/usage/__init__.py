"""Usage accounting: events from the stages, the ledger that joins them, the report."""

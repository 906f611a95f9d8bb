"""Jobs over HTTP: `Prefer: respond-async`, `Idempotency-Key`, and `/v1/images/jobs`."""

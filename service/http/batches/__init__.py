"""OpenAI's Batch API for images: `/v1/files` and `/v1/batches`."""

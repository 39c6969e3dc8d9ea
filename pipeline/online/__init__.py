"""Features computed from the photos at each step: the same batches as the cache's, for draws without end."""

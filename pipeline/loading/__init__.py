"""From a cache to batches: the order of samples, ranged reads, collation."""

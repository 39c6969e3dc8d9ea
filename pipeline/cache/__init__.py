"""The feature cache: a list of shards, each a pure function of its identity, on an object store."""

"""From a data set to committed shards: members planned, shards computed, manifests written."""

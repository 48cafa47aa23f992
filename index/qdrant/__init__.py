"""The door to Qdrant: an index's codes in a Qdrant cluster, which then answers for them; see `index.qdrant.push`."""

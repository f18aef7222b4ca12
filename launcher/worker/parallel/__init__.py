"""Process groups, shards and collectives of a rank."""

"""Many images: out of folders, lists, shards and object stores, into Parquet; no HTTP between."""

"""Many images: out of folders, lists, shards and object stores, into Parquet; no HTTP between."""

import os

# Ray reads it when it is imported: it would start a cluster that nobody asked for, which would use
# a disk, where anything of it is called after the end.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")

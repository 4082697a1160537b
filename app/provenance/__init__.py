"""What a file declares of its own origin, of which no score ever hears.

Runs on hostile bytes, in the processes that decode: what parses here is bounded in bytes, entries
and time, and loads neither pydantic nor c2pa before a file asks for it.
"""

"""The `nsnet` command."""

"""The service: HTTP in front of `model.detector`."""

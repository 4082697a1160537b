"""Training: images -> copies -> what the frozen tower gives -> head -> a checkpoint."""

"""The CLIP towers: where their weights come from, the tokens read from them, what adapts them."""

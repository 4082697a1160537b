"""What comes in: whose it is, how much of it there is room for, and the bytes themselves."""

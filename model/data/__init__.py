"""The images to train and be judged on: which they are, and what becomes of them on the way."""

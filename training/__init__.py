"""Training: the trainer that tunes the bridge, and its arguments."""

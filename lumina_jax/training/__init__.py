"""A training state and its life."""

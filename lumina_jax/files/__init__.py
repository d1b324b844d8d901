"""How anything is written, parsed and shown. Knows nothing of models."""

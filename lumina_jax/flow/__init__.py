"""The mathematics of flow matching; it knows functions v(x, t), no network."""

"""The mathematics of flow matching, for functions v(x, t), not networks."""

"""Workdirs of runs, and what people look at in them."""

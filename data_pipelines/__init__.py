"""From records to batches: source -> row plan -> tokens -> batch.

Of lumina_jax it imports `tokens`, `packing` and `whole_file` only, to keep
workers light; but for `encode`, which brings encoders along.
"""

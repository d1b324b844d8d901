"""From records to batches: source -> row plan -> tokens -> batch.

Of lumina_jax it imports `tokens` and `packing` only, to keep workers light.
"""

"""From records to batches: source -> row plan -> tokens -> batch.

Of lumina_jax it imports `tokens` only, so that a data worker stays light.
"""

"""Evaluation of trained networks; `lumina_jax.evaluate` is the command.

digits         metrics of generated digits     held_out_loss  loss by time
digits_report  all figures of a run on digits, and their tables
"""

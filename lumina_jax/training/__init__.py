"""Training: the state of a run, its steps, its checkpoints and its metrics.

run_config  every option of a run       check   validates it
data        sources -> batches          step    the jitted step, gradient: loss
optimizer   AdamW, Muon, EMA            state   parameters, EMA, moments
checkpoint  save, restore               loop    steps, and what runs between
metrics, aggregator, goodput            numbers of a run
nan_guard, watchdog, preemption         what can go wrong
"""

"""What a run takes of a machine that need not be there: `lumina_jax.plan`.

`job` says what shall run where, `outcome` compiles it and adds up what it
takes, `bound` how fast it can be at the best; `remedies` and `search` look for
others that fit, and `report` prints.
"""

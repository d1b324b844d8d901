"""Memory and speed of a run on a machine that need not be present.

job            a program, a machine and a mesh
compiled_job   compiles a job: memory, collectives, whether it fits
memory         estimates memory without compiling
roofline       lower bounds of the time of a step
search         finds the fastest meshes that fit
suggestions    changes that make a job fit
report         formats results as text or JSON
run            what `lumina_jax.plan` does
"""

"""Runs: their workdirs, and what they print and write for people.

workdir   claims a folder, loads a run      record    what a run ran on
init_from, parameter_source  weights to start from
previews, report, tables, messages          samples, report.html, printed text
"""

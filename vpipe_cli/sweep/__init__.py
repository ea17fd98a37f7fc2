"""Sweeps: one job in many variants, as trials that are whole runs; their results side by side.

``grammar`` reads what was typed, ``grid`` and ``where`` make points of it, ``trials`` checks them and gives each its
identity, ``store`` keeps a sweep's folder, ``controller`` runs the trials in a process of its own, ``results`` reads
what they measured, ``watch`` shows it.
"""

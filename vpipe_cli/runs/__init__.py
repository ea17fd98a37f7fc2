"""Runs on disk: their folders, states, logs and numbers."""

"""Runs, or a sweep, as a single HTML file that needs nothing else: no network, no server, no other file."""

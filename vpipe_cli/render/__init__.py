"""Records as tables, live view and plain lines. Only here is rich imported, and nothing else draws."""

"""Images: built once, shipped by content, run by a command that a pure function writes."""

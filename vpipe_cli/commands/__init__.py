"""One file per command: parse arguments, call one thing, print what it gives."""

"""Measurements beside peers and physical limits; nothing here decides a test."""

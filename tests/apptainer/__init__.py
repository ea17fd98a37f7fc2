"""A real Apptainer, a base to build from without a registry, and one image of the worker for all tests."""

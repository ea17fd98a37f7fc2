"""A launch as a manifest for Kubernetes."""

"""Manifests for Kubernetes that are made from those of a cluster."""

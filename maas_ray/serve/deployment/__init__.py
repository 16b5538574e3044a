"""Deployment: desired state, rollout, reconciliation."""

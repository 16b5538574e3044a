"""Desired state, rollout, reconciliation."""

"""What runs inside model replicas."""

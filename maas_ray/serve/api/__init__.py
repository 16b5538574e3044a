"""The public API: HTTP and gRPC."""

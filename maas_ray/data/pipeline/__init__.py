"""The steps of a preparation on Ray Data."""

"""What exists, shown as tables, JSON or HTML."""

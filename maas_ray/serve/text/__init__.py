"""Requests to generating models: prompts to tokens, and tokens to text."""

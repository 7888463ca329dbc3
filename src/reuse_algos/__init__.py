"""Reuse what earlier training runs computed."""

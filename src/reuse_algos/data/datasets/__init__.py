"""Datasets by name: what a recipe's ``data`` section asks for."""

"""Attention maps: read, recorded, drawn as heat, taken apart into segments."""

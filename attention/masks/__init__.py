"""Masks: on layers and latents, of an edit, refined while it runs, put back into pixels."""

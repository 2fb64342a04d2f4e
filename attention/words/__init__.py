"""Words of a prompt: where they stand, and how two prompts go together."""

"""The floor under everything: what the pack knows of ComfyUI's models, conditionings, guiders and gradients."""

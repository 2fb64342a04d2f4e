"""The scores that `python demo` prints: `main([SCENES, FOLDER])`, by measure/evaluation.py.

All methods that it knows, but of image-to-image only the strengths that people use.
"""

from __future__ import annotations

STRENGTHS = (0.5, 0.75)


def main(arguments: list[str]) -> int:
    """Evaluate on a few scenes; returns the exit code."""
    # These need the host, which is importable only when host_process calls this.
    from measure import evaluation, methods, pack_methods

    scenes, folder = arguments
    pack_methods.register()
    chosen = [name for name in methods.METHODS if not name.startswith("img2img")]
    for strength in STRENGTHS:
        method = methods.img2img(strength)
        methods.METHODS.setdefault(method.name, method)
        chosen.append(method.name)
    options = ["--edits", "--count", scenes, "--batch", scenes, "--output", folder]
    return evaluation.main([*options, "--methods", *chosen])

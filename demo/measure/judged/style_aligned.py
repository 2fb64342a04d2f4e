"""StyleAligned."""

from __future__ import annotations

from machine.pack import pack_module
from measure.injected import Judged, method

StyleAligned = pack_module("attention.methods.style_aligned").StyleAligned
JUDGED: Judged = [(method("StyleAligned", StyleAligned(), lambda steps: steps), ("recolour", "replace"))]

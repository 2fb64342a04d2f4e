"""The pack's nodes: each class is a schema and a call."""

from __future__ import annotations

from comfy_api.latest import io

from .cpam import CPAMNode, EditMasksNode, ExactBackgroundNode
from .demo import DemoModelNode, DemoSceneNode
from .inversion import InvertNode, LoadInversionNode, ReconstructNode, SaveInversionNode
from .inversion_methods import DirectNode, FixedPointNode, NegativePromptNode, NullTextNode
from .map_views import MapViewerNode, SelfMapsNode
from .maps import MapMaskNode, RecordMapsNode
from .masks import CompositeNode, DiffMaskNode, RefinedMasksNode, RefineMaskNode
from .prompt import PromptNode
from .regions import RegionNode, RegionPromptsNode
from .setup import EditSetupNode

NODES: list[type[io.ComfyNode]] = [
    PromptNode,
    InvertNode,
    NullTextNode,
    NegativePromptNode,
    FixedPointNode,
    DirectNode,
    ReconstructNode,
    SaveInversionNode,
    LoadInversionNode,
    EditMasksNode,
    CPAMNode,
    ExactBackgroundNode,
    CompositeNode,
    RefineMaskNode,
    RefinedMasksNode,
    DiffMaskNode,
    RegionNode,
    RegionPromptsNode,
    RecordMapsNode,
    MapMaskNode,
    MapViewerNode,
    SelfMapsNode,
    EditSetupNode,
    DemoModelNode,
    DemoSceneNode,
]

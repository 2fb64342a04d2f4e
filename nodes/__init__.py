"""The pack's nodes: each class is a schema and a call."""

from __future__ import annotations

from comfy_api.latest import io

from .cpam import CPAMNode, EditMasksNode, ExactBackgroundNode
from .demo import DemoModelNode, DemoSceneNode
from .generated import RecordSourceNode
from .injection import FPENode, MasaCtrlNode, PnPNode
from .inversion import InvertNode, LoadInversionNode, ReconstructNode, SaveInversionNode
from .inversion_methods import DirectNode, FixedPointNode, NegativePromptNode, NullTextNode
from .mag import GuidanceCurveNode, MAGNode
from .map_views import MapViewerNode, SelfMapsNode
from .maps import MapMaskNode, RecordMapsNode
from .masks import CompositeNode, DiffMaskNode, RefinedMasksNode, RefineMaskNode
from .p2p import EmbCtrlNode, LocalBlendNode, P2PNode
from .prompt import PromptNode
from .proximal import ProximalNode
from .regions import RegionNode, RegionPromptsNode
from .setup import EditSetupNode
from .sweep import GridNode, SweepNode

NODES: list[type[io.ComfyNode]] = [
    PromptNode,
    EmbCtrlNode,
    InvertNode,
    NullTextNode,
    NegativePromptNode,
    FixedPointNode,
    DirectNode,
    ProximalNode,
    RecordSourceNode,
    ReconstructNode,
    SaveInversionNode,
    LoadInversionNode,
    EditMasksNode,
    CPAMNode,
    FPENode,
    MasaCtrlNode,
    P2PNode,
    LocalBlendNode,
    PnPNode,
    MAGNode,
    GuidanceCurveNode,
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
    SweepNode,
    GridNode,
    DemoModelNode,
    DemoSceneNode,
]

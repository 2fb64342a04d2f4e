"""The pack's nodes: each class is a schema and a call."""

from __future__ import annotations

from comfy_api.latest import io

from .background import ExactBackgroundNode
from .composite import CompositeNode
from .cpam import CPAMNode
from .demo import DemoModelNode, DemoSceneNode
from .difference import DiffMaskNode
from .edit_masks import EditMasksNode
from .embctrl import EmbCtrlNode
from .fpe import FPENode
from .generated import RecordSourceNode
from .inversion import InvertNode, LoadInversionNode, ReconstructNode, SaveInversionNode
from .inversion_methods import DirectNode, FixedPointNode, NegativePromptNode, NullTextNode
from .local_blend import LocalBlendNode
from .mag import GuidanceCurveNode, MAGNode
from .map_views import MapViewerNode, SelfMapsNode
from .maps import MapMaskNode, RecordMapsNode
from .masactrl import MasaCtrlNode
from .p2p import P2PNode
from .pnp import PnPNode
from .prompt import PromptNode
from .proximal import ProximalNode
from .refine import RefinedMasksNode, RefineMaskNode
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

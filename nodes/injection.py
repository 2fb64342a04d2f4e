"""Nodes of the methods that put the source's features into the edit: FPE, MasaCtrl, Plug-and-Play."""

from __future__ import annotations

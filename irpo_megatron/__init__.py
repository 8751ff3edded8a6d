"""Iterative Reasoning Preference Optimization at Megatron scale (Pang et al., arXiv 2404.19733)."""

__version__ = "0.1.0"

"""dami-merge: models between an Instruct and a Thinking checkpoint.

θ(λ) = (1−λ)·θ_Instruct + λ·θ_Thinking (DAMI, arXiv 2601.21414). Importing this package
costs nothing: torch, transformers and mergekit are imported only where they are used,
because the start-up hook imports it in every Python process.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]

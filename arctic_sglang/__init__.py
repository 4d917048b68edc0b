"""arctic-sglang: a plugin that makes stock SGLang faster and lets it run on a machine without a GPU.

This module holds the version alone and imports nothing, so that packaging and the doctor can read it
anywhere.
"""

__version__ = "0.1.0"

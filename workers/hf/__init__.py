"""The only folder that touches transformers: a causal language model as packed rows of tokens, and its words."""

from workers.hf.gguf import convert_gguf
from workers.hf.model import LanguageModel
from workers.hf.seam import Enough, Pass
from workers.hf.shape import ModelShape, model_shape
from workers.hf.tokenizer import Tokenizer

__all__ = ["Enough", "LanguageModel", "ModelShape", "Pass", "Tokenizer", "convert_gguf", "model_shape"]

"""SymbolicLight inside transformers. Importing this module registers its classes with the Auto classes.

    import symboliclight.interop.transformers
    model = transformers.AutoModelForCausalLM.from_pretrained("folder")

A saved folder is also a checkpoint of symboliclight, and loads elsewhere with `trust_remote_code=True`.
"""

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from symboliclight.interop.transformers.cache import SymbolicLightCache
from symboliclight.interop.transformers.configuration import SymbolicLightConfig
from symboliclight.interop.transformers.export import export, from_checkpoint
from symboliclight.interop.transformers.modeling import SymbolicLightForCausalLM
from symboliclight.interop.transformers.tokenization import SymbolicLightTokenizer

__all__ = ["SymbolicLightCache", "SymbolicLightConfig", "SymbolicLightForCausalLM", "SymbolicLightTokenizer", "export",
           "from_checkpoint"]

AutoConfig.register(SymbolicLightConfig.model_type, SymbolicLightConfig)
AutoModelForCausalLM.register(SymbolicLightConfig, SymbolicLightForCausalLM)
AutoTokenizer.register(SymbolicLightConfig, fast_tokenizer_class=SymbolicLightTokenizer)

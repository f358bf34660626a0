"""InstructBLIP: vision-language models that follow instructions, built on transformers.

Importing this package registers its configuration, model and processor with transformers' Auto classes, and marks them
so that what they save also loads without the package, through `trust_remote_code=True`.
"""

from importlib.metadata import version

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor

from instructblip.modeling import (
    InstructBLIPConfig,
    InstructBLIPForConditionalGeneration,
    InstructBLIPQFormerConfig,
    InstructBLIPQFormerModel,
)
from instructblip.processing import InstructBLIPCollator, InstructBLIPProcessor
from instructblip.release import push_release, write_model_card

__version__ = version("instructblip")

__all__ = [
    "InstructBLIPCollator",
    "InstructBLIPConfig",
    "InstructBLIPForConditionalGeneration",
    "InstructBLIPProcessor",
    "InstructBLIPQFormerConfig",
    "InstructBLIPQFormerModel",
    "__version__",
    "push_release",
    "write_model_card",
]

AutoConfig.register(InstructBLIPConfig.model_type, InstructBLIPConfig)
for auto_class in (AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM):
    auto_class.register(InstructBLIPConfig, InstructBLIPForConditionalGeneration)
AutoProcessor.register(InstructBLIPConfig, InstructBLIPProcessor)

InstructBLIPConfig.register_for_auto_class()
InstructBLIPForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
InstructBLIPProcessor.register_for_auto_class()

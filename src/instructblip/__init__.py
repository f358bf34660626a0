"""InstructBLIP: vision-language models that follow instructions, built on transformers.

Importing this package registers its configuration, model and processor with transformers' Auto classes, and marks them
so that what they save also loads without the package, through `trust_remote_code=True`.
"""

from importlib.metadata import version

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModelForPreTraining,
    AutoProcessor,
)

from instructblip.modeling import (
    InstructBLIPConfig,
    InstructBLIPForConditionalGeneration,
    InstructBLIPForPreTraining,
    InstructBLIPQFormerConfig,
    InstructBLIPQFormerModel,
    start_from_stage1,
)
from instructblip.processing import (
    InstructBLIPCollator,
    InstructBLIPPreferenceCollator,
    InstructBLIPProcessor,
    InstructBLIPStage1Collator,
    InstructBLIPStage2Collator,
)
from instructblip.release import push_release, write_model_card

__version__ = version("instructblip")

__all__ = [
    "InstructBLIPCollator",
    "InstructBLIPConfig",
    "InstructBLIPForConditionalGeneration",
    "InstructBLIPForPreTraining",
    "InstructBLIPPreferenceCollator",
    "InstructBLIPProcessor",
    "InstructBLIPQFormerConfig",
    "InstructBLIPQFormerModel",
    "InstructBLIPStage1Collator",
    "InstructBLIPStage2Collator",
    "__version__",
    "push_release",
    "start_from_stage1",
    "write_model_card",
]

AutoConfig.register(InstructBLIPConfig.model_type, InstructBLIPConfig)
for auto_class in (AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM):
    auto_class.register(InstructBLIPConfig, InstructBLIPForConditionalGeneration)
AutoModelForPreTraining.register(InstructBLIPConfig, InstructBLIPForPreTraining)
AutoProcessor.register(InstructBLIPConfig, InstructBLIPProcessor)

InstructBLIPConfig.register_for_auto_class()
InstructBLIPForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
InstructBLIPForPreTraining.register_for_auto_class("AutoModelForPreTraining")
InstructBLIPProcessor.register_for_auto_class()

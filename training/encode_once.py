"""How the trainer uses a feature cache, an image sampler and random crops."""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from .feature_cache import FeatureCache, KeepFeatures, encoder, leave_images_encoded
from .image_sampler import ImageSampler
from .random_crops import EpochCollator, RandomCropCollator


class EncodeOnceMixin(Trainer):
    """Encodes an image once for all epochs (`args.feature_cache`), or for several samples (`args.images_together`).

    Or crops it anew in each epoch (`args.random_crops`).
    """

    told_the_epoch: list[Any]  # of `ResumableTrainer`

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._image_sampler: ImageSampler | None = None
        if self.args.images_together > 1 and self.train_dataset is not None:
            self._sample_images_together(self.train_dataset)  # now, as it may be refused
        self.feature_cache: FeatureCache | None = None
        if self.args.feature_cache is not None:
            self._open_feature_cache()
        elif self.args.random_crops:
            self.data_collator = RandomCropCollator(self.data_collator, self.args.order_seed)
            self.told_the_epoch.append(self.data_collator)

    def _open_feature_cache(self) -> None:
        args = self.args
        processor = getattr(self.data_collator, "processor", self.processing_class)
        settings = args.feature_cache_dtype, args.feature_cache_gb, args.feature_cache_views
        model = self._base_model()
        self.feature_cache = FeatureCache(args.feature_cache, model, processor, *settings)
        sharded = self.is_fsdp_enabled or is_deepspeed_zero3_enabled()
        self._encode = None if sharded else encoder(model, self.accelerator.autocast)
        self.data_collator = self.feature_cache.collator(self.data_collator)
        self.train_dataset = leave_images_encoded(self.train_dataset)
        if isinstance(self.eval_dataset, dict):
            self.eval_dataset = {name: leave_images_encoded(dataset) for name, dataset in self.eval_dataset.items()}
        else:
            self.eval_dataset = leave_images_encoded(self.eval_dataset)
        self.told_the_epoch.append(self.data_collator)
        self.add_callback(KeepFeatures(self.feature_cache))

    def _base_model(self) -> Any:
        model = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if isinstance(model, PeftModel) else model

    def _prepare_inputs(self, inputs: Any) -> Any:
        inputs = super()._prepare_inputs(inputs)
        return inputs if self.feature_cache is None else self.feature_cache.complete(inputs, self._encode)

    def _get_dataloader(self, *args: Any, is_training: bool = False, **kwargs: Any) -> DataLoader:
        collator = self.data_collator
        if isinstance(collator, EpochCollator) and not is_training:
            self.data_collator = collator.for_evaluation()
        try:
            return super()._get_dataloader(*args, is_training=is_training, **kwargs)
        finally:
            self.data_collator = collator

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.args.images_together == 1:
            return super()._get_train_sampler(train_dataset)
        return self._sample_images_together(self.train_dataset if train_dataset is None else train_dataset)

    def _sample_images_together(self, dataset: Any) -> ImageSampler:
        args = self.args
        if args.homogeneous_batches or args.train_sampling_strategy != "random":
            raise ValueError(
                "images_together, homogeneous_batches and train_sampling_strategy each decide the order: set only one"
            )
        if self._image_sampler is None or self._image_sampler.batch_size != self._train_batch_size:
            self._image_sampler = ImageSampler(dataset, self._train_batch_size, args.images_together, args.order_seed)
            self.told_the_epoch.append(self._image_sampler)
        return self._image_sampler

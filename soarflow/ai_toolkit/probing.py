"""The probe inside AI Toolkit: `soar: {probe_every: N}` while training, and `type: SOARProbe`,
which trains nothing.

Pictures are probed where they would be trained on: the host reads and encodes them, makes states of
them, and asks for their loss; there the model is measured at the probe's levels in place of a loss.
So whatever the host gives an architecture, the probe has too. All of it has generators of its
own.
"""

import json
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..advice import (
    DRIFT_FILE,
    FIGURE_FILE,
    HISTORY_FILE,
    Probed,
    advice,
    cost,
    cut_off,
    figure,
    heading,
    noise_in_words,
    of_training,
    step_in_words,
    table,
)
from ..config import ConfigError
from ..probe import (
    IN_TRAINING,
    Drift,
    Errors,
    Held,
    NoiseNorm,
    Setting,
    in_training,
    join,
    measure,
    noise_norms,
    setting_of,
    summarise,
)
from ..terminal import plain_table
from .batch import apart
from .correction import Correction
from .paths import FlowPath

DRAWN = 4
"""So many pictures are drawn as a whole."""


class Probing(Correction):
    """A Correction that measures every `probe_every` steps what the model's own step loses."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._measuring: Any = None
        """What is done with a picture's Held in place of training on it; None while training."""
        self._probe_set: Any = None
        self._drift: dict[str, float] = {}
        self._history_is_cut = False
        if self.probes and DRIFT_FILE.startswith(self.job.name):
            raise ConfigError(
                f"config.name must not be how {DRIFT_FILE} begins, got {self.job.name!r}: AI "
                "Toolkit would take that file for a save. Choose another."
            )

    @property
    def probes(self) -> bool:
        """Whether anything is probed in this job."""
        return self.soar.probe_every > 0

    def before_dataset_load(self) -> None:
        super().before_dataset_load()
        if self.probes and self.soar.probe_pictures is not None:
            with apart(self.device_torch, 0):
                self._probe_set = self._own_pictures(self.soar.probe_pictures)

    def _own_pictures(self, folder: str) -> Any:
        """The host's data set of the held-out pictures, read as the job's first one is."""
        from toolkit.config_modules import DatasetConfig, preprocess_dataset_raw_config
        from toolkit.data_loader import AiToolkitDataset

        if not Path(folder).is_dir():
            raise ConfigError(f"soar.probe_pictures must be a folder that exists, got {folder}.")
        said = {**self.get_conf("datasets")[0], "folder_path": folder, "num_repeats": 1}
        said |= {"caption_dropout_rate": 0.0, "cache_text_embeddings": self._caches_texts()}
        config = DatasetConfig(**preprocess_dataset_raw_config([said])[0])
        config.trigger_word = config.trigger_word or self.trigger_word
        return AiToolkitDataset(config, batch_size=1, sd=self.sd)

    def _caches_texts(self) -> bool:
        return self.train_config.cache_text_embeddings or any(
            dataset.cache_text_embeddings for dataset in self.datasets or []
        )

    def hook_train_loop(self, batch: Any) -> OrderedDict:
        every = self.soar.probe_every
        if every and self.step_num % every == 0:
            self._probe_in_training(every)
        losses = super().hook_train_loop(batch)
        losses.update(self._drift)  # the last probe's, so that every log has it
        return losses

    def _probe_in_training(self, every: int) -> None:
        setting = in_training(self.soar, self._shift())
        number, levels = self._drift_on(setting, IN_TRAINING)
        self._drift = {f"drift_{row.sigma:g}": row.drift for row in levels}
        file = Path(self.save_root) / HISTORY_FILE
        if not self._history_is_cut:  # a resume measures again what came after its save
            print(cost(setting, number, every, self._forwards_per_step()))
            file.parent.mkdir(parents=True, exist_ok=True)
            cut_off(file, self.step_num)
            self._history_is_cut = True
        with file.open("a") as stream:
            line = {"step": self.step_num, "levels": of_training(levels)}
            stream.write(json.dumps(line) + "\n")

    def _forwards_per_step(self) -> float:
        train = self.train_config
        each = 4 if train.gradient_checkpointing else 3
        pictures = train.batch_size * train.gradient_accumulation
        return self.soar.cost(train.gradient_checkpointing) * each * pictures

    def _drift_on(self, setting: Setting, number: int) -> tuple[int, list[Drift]]:
        """How many pictures were probed, and what was found."""
        parts: list[Errors] = []
        found = self._on_pictures(number, lambda held: parts.append(measure(held, setting)))
        return found, summarise(join(parts), setting.levels)

    def _on_pictures(self, number: int, do: Any) -> int:
        """Lets the host prepare the first pictures in its own batches, each from a seed of its own,
        and does something with what becomes of them; returns their number."""
        dataset, places = self._first_pictures(number)
        logs = dict(self.additional_logs)
        with self._as_in_drawing():
            for seed, batch in enumerate(self._batches(dataset, places)):
                with apart(self.device_torch, seed):
                    self._measuring = do
                    try:
                        self._take(dataset, batch)
                    finally:
                        self._measuring = self._primary = None
        self.additional_logs = logs
        return len(places)

    def _batches(self, dataset: Any, places: list[int]) -> Iterator[list[int]]:
        """Pictures of one bucket of the host's, as many as it trains on together."""
        buckets = [bucket.file_list_idx for bucket in dataset.buckets.values()]
        together = self.train_config.batch_size
        for bucket in buckets or [[place] for place in places]:
            members = [place for place in places if place in bucket]
            for start in range(0, len(members), together):
                yield members[start : start + together]

    def _take(self, dataset: Any, places: list[int]) -> None:
        from toolkit.data_transfer_object.data_loader import DataLoaderBatchDTO

        items = [dataset._get_single_item(place) for place in places]
        batch = DataLoaderBatchDTO(file_items=items)
        try:
            self.train_single_accumulation(batch)
        finally:
            batch.cleanup()

    def _first_pictures(self, number: int) -> tuple[Any, list[int]]:
        """The data set and the places in it of its first pictures by name, each once."""
        from toolkit.data_loader import get_dataloader_datasets

        dataset = self._probe_set or get_dataloader_datasets(self.data_loader)[0]
        places = {item.path: index for index, item in reversed([*enumerate(dataset.file_list)])}
        return dataset, [places[path] for path in sorted(places)][:number]

    @contextmanager
    def _as_in_drawing(self) -> Iterator[None]:
        """Dropout off, and the averaged weights in place where the job keeps an average."""
        modules = [each for each in (self.sd.unet, getattr(self, "network", None))
                   if isinstance(each, torch.nn.Module)]  # fmt: skip
        trained = [each for module in modules for each in module.modules() if each.training]
        ema = getattr(self, "ema", None)
        with ExitStack() as after:
            if ema is not None:
                ema.eval()
                after.callback(ema.train)
            for module in trained:
                module.training = False
                after.callback(setattr, module, "training", True)
            yield

    def predict_noise(self, *args: Any, **kwargs: Any) -> Tensor:
        if self._measuring is None or not kwargs.get("is_primary_pred"):
            return super().predict_noise(*args, **kwargs)
        self._primary = self._circumstances(kwargs)
        return torch.zeros_like(kwargs["noisy_latents"])  # nobody looks at it

    def calculate_loss(
        self,
        noise_pred: Tensor,
        noise: Tensor,
        noisy_latents: Tensor,
        timesteps: Tensor,
        batch: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        if self._measuring is None:
            return super().calculate_loss(
                noise_pred, noise, noisy_latents, timesteps, batch, *args, **kwargs
            )
        primary, self._primary = self._primary, None
        assert primary is not None, "a loss without a prediction"
        as_predicted = dict(vars(batch))
        host = self._host_batch(
            primary, noisy_latents, timesteps, batch, as_predicted, super().calculate_loss
        )
        if isinstance(host.path, FlowPath):  # every level, whichever expert is trained now
            host = replace(host, path=replace(host.path, lowest=0.0, highest=1.0))
        with torch.no_grad():
            self._measuring(host.held(noise))
        return torch.zeros((), device=noisy_latents.device, requires_grad=True)


class OnlyProbing(Probing):
    """`type: SOARProbe`: the model as the job has it now, probed; nothing is trained, saved or
    drawn."""

    @property
    def probes(self) -> bool:
        return True

    def _in_words(self) -> str:
        step = step_in_words(setting_of(self.soar, self._shift()))
        return f"SOARProbe: {step}; trains nothing and saves no weights"

    def hook_before_train_loop(self) -> None:
        super().hook_before_train_loop()
        self.train_config.disable_sampling = True
        self.train_config.validation_config = None
        self.has_first_sample_requested = False
        self._trained_steps, self.train_config.steps = self.step_num, self.step_num + 1

    def hook_train_loop(self, batch: Any) -> OrderedDict:
        """The one step of this job: it probes."""
        setting = setting_of(self.soar, self._shift())
        number, levels = self._drift_on(setting, IN_TRAINING)
        trained, own = self._trained_steps > 0, self.soar.probe_pictures
        probed = Probed(
            self._name(), setting, levels, number,
            own or "the job's own", trained and own is None, self._noise_norms(setting),
        )  # fmt: skip
        print("\n" + "\n".join([heading(probed), plain_table(table(probed))]))
        if probed.noise_norm:
            print(noise_in_words(probed.noise_norm))
        print("\n".join(advice(probed)), flush=True)
        self._write(probed)
        return OrderedDict(drift=probed.worst.drift)

    def _name(self) -> str:
        steps = self._trained_steps
        return f"{self.job.name}, {f'after {steps} steps' if steps else 'before training'}"

    def _noise_norms(self, setting: Setting) -> list[NoiseNorm]:
        """Along whole drawings; not for a model that is drawn by another schedule than ours."""
        if not self.sd.is_flow_matching:
            return []
        numbers: list[int] = []
        parts: list[list[NoiseNorm]] = []
        drawings = replace(setting, shift=self._shift())

        def draw(held: Held) -> None:
            numbers.append(len(held.x0))
            parts.append(noise_norms([held], drawings))

        self._on_pictures(DRAWN, draw)
        return [_mean(rows, numbers) for rows in zip(*parts, strict=True)]

    def _write(self, probed: Probed) -> None:
        root = Path(self.save_root)
        root.mkdir(parents=True, exist_ok=True)
        text = json.dumps(probed.record(), indent=1) + "\n"
        (root / DRIFT_FILE).write_text(text, encoding="utf-8")
        drawn = figure([probed], root / FIGURE_FILE)
        print(f"{root / DRIFT_FILE}" + (f"; {root / FIGURE_FILE}" if drawn else ""), flush=True)

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Nothing was trained."""

    def sample(self, *args: Any, **kwargs: Any) -> None:
        """Nothing was trained."""


def _mean(rows: tuple[NoiseNorm, ...], numbers: list[int]) -> NoiseNorm:
    """Of one level, over batches of so many pictures."""
    sampled, on_path = (
        sum(getattr(row, key) * number for row, number in zip(rows, numbers, strict=True))
        / sum(numbers)
        for key in ("sampled", "on_path")
    )
    return NoiseNorm(rows[0].sigma, sampled / on_path, sampled, on_path)
